// 1-bit gradients: rust/onebit/ on a device, with its bits; what is computed and in which order is said there.
//
// STORAGE is the gradient's, one of storage.cu's. Work is by the thread where an element, a byte of bits, needs nothing of
// the others; a rotated block is a warp's: thread t holds elements 32k + t.

typedef STORAGE::Stored Stored;
typedef STORAGE::Computed A; // float or double

constexpr unsigned THREADS = 256;
constexpr unsigned ROTATED = 1024; // elements of a rotated block
constexpr unsigned HELD = ROTATED / WARP;
constexpr unsigned SHORTEST = 32;
// Blocks of threads that a multiprocessor has registers for, where a thread holds so many numbers.
constexpr unsigned RESIDENT = sizeof(A) == 8 ? 1 : 2;

// ---------------------------------------------------------------------------------------------------------------------
// All kernels' parameter

struct OnebitArgs {
    const Array *array; // the gradient, or what is written
    unsigned char *bits;
    A *scales;
    A *pieces;          // work space: least, greatest and `odd` of each piece of a block
    u64 n, block;       // elements of all, and of a block that shares a least and a greatest number
    u64 blocks, piece;  // how many; elements of a piece of a block
    u64 in_block;       // pieces of a block
    Random random;
};

// Several times as fast where it fits.
__device__ __forceinline__ u64 divide(const u64 a, const u64 b) {
    return (a | b) >> 32 ? a / b : unsigned(a) / unsigned(b);
}

__device__ __forceinline__ A not_a_number() { return A(__longlong_as_double(0x7ff8000000000000LL)); }

__device__ __forceinline__ A load(const Array &array, const u64 i) { return STORAGE::load(*place<const Stored>(array, i)); }

// Never inlined: for where it is asked for many times.
__device__ __noinline__ A load_anywhere(const Array &array, const u64 i) { return load(array, i); }

__device__ __noinline__ void store_anywhere(const Array &array, const u64 i, const A value) {
    *place<Stored>(array, i) = STORAGE::store(value);
}

// 8 elements from i on, i a multiple of 8; 0 behind the end.
__device__ __forceinline__ void load_eight(const Array &array, const u64 i, const bool wide, A (&x)[8]) {
    if (wide && i + 8 <= array.length) {
        const Pack<Stored, 8> pack = *reinterpret_cast<const Pack<Stored, 8> *>(array.data + i * sizeof(Stored));
        for (unsigned k = 0; k < 8; ++k) x[k] = STORAGE::load(pack.at[k]);
    } else {
        for (unsigned k = 0; k < 8; ++k) x[k] = i + k < array.length ? load(array, i + k) : A(0);
    }
}

__device__ __forceinline__ bool is_wide(const Array &array) { return array.axes == 0 && aligned(array.data); }

// ---------------------------------------------------------------------------------------------------------------------
// minmax

// The least and the greatest number, and one that is NaN if any is not finite.
struct Extremes {
    A least, greatest, odd;
};

__device__ __forceinline__ void merge(Extremes &a, const Extremes &b) {
    if (b.least < a.least) a.least = b.least;
    if (b.greatest > a.greatest) a.greatest = b.greatest;
    a.odd += b.odd;
}

// Merges what the threads of a warp hold; valid in its first.
__device__ __forceinline__ void merge_warp(Extremes &found) {
    for (unsigned distance = WARP / 2; distance > 0; distance /= 2) {
        const Extremes other = {__shfl_down_sync(ALL_LANES, found.least, distance),
                                __shfl_down_sync(ALL_LANES, found.greatest, distance),
                                __shfl_down_sync(ALL_LANES, found.odd, distance)};
        merge(found, other);
    }
}

// 0 is added because -0 and +0 are equal, so which of them was found depends on the order.
__device__ __forceinline__ void write_scales(A *const scales, const Extremes &found) {
    const bool finite = found.odd == A(0);
    scales[0] = finite ? found.least + A(0) : not_a_number();
    scales[1] = finite ? found.greatest + A(0) : not_a_number();
}

// A warp takes a piece of a block.
extern "C" __global__ void __launch_bounds__(256, 2) extremes(const OnebitArgs a) {
    const u64 number = u64(blockIdx.x) * (THREADS / WARP) + threadIdx.x / WARP;
    if (number >= a.blocks * a.in_block) return;
    const unsigned lane = threadIdx.x % WARP;
    const u64 block = divide(number, a.in_block), start = block * a.block + (number - block * a.in_block) * a.piece;
    u64 end = (block + 1) * a.block < a.n ? (block + 1) * a.block : a.n;
    end = start + a.piece < end ? start + a.piece : end;
    const Array &array = *a.array;
    Extremes found = {A(infinity()), A(-infinity()), A(0)};
    const auto add = [&](const A x) {
        const Extremes one = {x, x, x * A(0)};
        merge(found, one);
    };
    u64 i = start;
    if (array.axes == 0) {
        constexpr unsigned WIDTH = 16 / sizeof(Stored);
        // Up to the first element that 16 bytes can be read from, and then four times as many a thread.
        while (i < end && !aligned(array.data + i * sizeof(Stored))) add(load(array, i++));
        for (; i + 4 * WIDTH * WARP <= end; i += 4 * WIDTH * WARP) {
            Pack<Stored, WIDTH> packs[4];
#pragma unroll
            for (unsigned k = 0; k < 4; ++k) {
                const u64 at = i + (k * WARP + lane) * WIDTH;
                packs[k] = *reinterpret_cast<const Pack<Stored, WIDTH> *>(array.data + at * sizeof(Stored));
            }
#pragma unroll
            for (unsigned k = 0; k < 4; ++k) {
#pragma unroll
                for (unsigned j = 0; j < WIDTH; ++j) add(STORAGE::load(packs[k].at[j]));
            }
        }
    }
    for (i += lane; i < end; i += WARP) add(load(array, i));
    merge_warp(found);
    if (lane > 0) return;
    if (a.in_block == 1) {
        write_scales(a.scales + 2 * block, found);
    } else {
        a.pieces[3 * number] = found.least;
        a.pieces[3 * number + 1] = found.greatest;
        a.pieces[3 * number + 2] = found.odd;
    }
}

// A block of threads takes the pieces of a block.
extern "C" __global__ void __launch_bounds__(256, 2) merge_pieces(const OnebitArgs a) {
    __shared__ A of_warps[3 * (THREADS / WARP)];
    const u64 block = blockIdx.x;
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    Extremes found = {A(infinity()), A(-infinity()), A(0)};
    for (u64 i = block * a.in_block + threadIdx.x; i < (block + 1) * a.in_block; i += THREADS) {
        const Extremes piece = {a.pieces[3 * i], a.pieces[3 * i + 1], a.pieces[3 * i + 2]};
        merge(found, piece);
    }
    merge_warp(found);
    if (lane == 0) {
        of_warps[3 * warp] = found.least;
        of_warps[3 * warp + 1] = found.greatest;
        of_warps[3 * warp + 2] = found.odd;
    }
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (unsigned k = 1; k < THREADS / WARP; ++k) {
        const Extremes other = {of_warps[3 * k], of_warps[3 * k + 1], of_warps[3 * k + 2]};
        merge(found, other);
    }
    write_scales(a.scales + 2 * block, found);
}

// What decides about the bits of a block, where the first 16 bits of u do; as in rust/onebit/minmax.rs.
struct Threshold {
    A least, factor, sure, possible;
};

constexpr double ROOM = 1.0 / 32.0;

__device__ __forceinline__ Threshold threshold(const A least, const A greatest) {
    const double infinite = __longlong_as_double(0x7ff0000000000000LL);
    // 2^±100, 2^±900
    const double low = __longlong_as_double(sizeof(A) == 4 ? 0x39b0000000000000LL : 0x07b0000000000000LL);
    const double high = __longlong_as_double(sizeof(A) == 4 ? 0x4630000000000000LL : 0x7830000000000000LL);
    const double width = double(greatest) - double(least);
    if (!(width > 0.0)) return {A(0), A(0), A(infinite), A(infinite)};
    if (width < low || width > high) return {A(0), A(0), A(infinite), A(-infinite)};
    return {least, A(65536.0 / width), A(1.0 + ROOM), A(-ROOM)};
}

// u < (g - b)/a, where 16 bits of u are `first`.
__device__ __noinline__ bool exact(const double g, const double least, const double greatest, const unsigned first,
                                   const Random random, const u64 i) {
    double d = g - least, width = greatest - least;
    if (width == __longlong_as_double(0x7ff0000000000000LL)) {
        d = g / 2.0 - least / 2.0;
        width = greatest / 2.0 - least / 2.0;
    }
    const Words words = random_block(random, UNIFORM37, i);
    const u64 more = (u64(words.at[1]) << 32 | words.at[0]) >> 27;
    const double u = double(u64(first) << 37 | more) / 9007199254740992.0;
    return u < d / width;
}

// A thread takes 8 elements: a byte of bits.
extern "C" __global__ void __launch_bounds__(256, 2) encode_minmax(const OnebitArgs a) {
    const Array &array = *a.array;
    const bool wide = is_wide(array);
    const u64 bytes = (a.n + 7) / 8, threads = u64(gridDim.x) * THREADS;
    for (u64 byte = u64(blockIdx.x) * THREADS + threadIdx.x; byte < bytes; byte += threads) {
        const Words draws = random_block(a.random, UNIFORM16, byte);
        A x[8];
        load_eight(array, 8 * byte, wide, x);
        u64 block = divide(8 * byte, a.block), end = (block + 1) * a.block;
        Threshold t = threshold(a.scales[2 * block], a.scales[2 * block + 1]);
        unsigned bits = 0, open = 0;
#pragma unroll
        for (unsigned k = 0; k < 8; ++k) {
            const u64 i = 8 * byte + k;
            if (i >= a.n) break;
            if (i >= end) {
                ++block;
                end += a.block;
                t = threshold(a.scales[2 * block], a.scales[2 * block + 1]);
            }
            const unsigned draw = draws.at[k / 2] >> (16 * (k % 2)) & 0xffffu;
            const A ahead = (x[k] - t.least) * t.factor - A(draw);
            if (ahead >= t.sure) bits |= 1u << k;
            else if (ahead > t.possible) open |= 1u << k;
        }
        // Once in 65536, or always where differences are not normal numbers.
        for (unsigned k = 0; open >> k; ++k) {
            if (!(open >> k & 1u)) continue;
            const u64 i = 8 * byte + k, of = divide(i, a.block);
            // A copy by address would put the words into local memory.
            const unsigned pair = k < 4 ? (k < 2 ? draws.at[0] : draws.at[1]) : (k < 6 ? draws.at[2] : draws.at[3]);
            const unsigned draw = pair >> (16 * (k % 2)) & 0xffffu;
            const bool one = exact(double(load(array, i)), double(a.scales[2 * of]), double(a.scales[2 * of + 1]), draw,
                                   a.random, i);
            if (one) bits |= 1u << k;
        }
        a.bits[byte] = static_cast<unsigned char>(bits);
    }
}

// A thread takes a byte of bits: 8 elements.
extern "C" __global__ void __launch_bounds__(256, 2) decode_minmax(const OnebitArgs a) {
    const Array &array = *a.array;
    const bool wide = is_wide(array);
    const u64 bytes = (a.n + 7) / 8, threads = u64(gridDim.x) * THREADS;
    for (u64 byte = u64(blockIdx.x) * THREADS + threadIdx.x; byte < bytes; byte += threads) {
        const unsigned bits = a.bits[byte];
        u64 block = divide(8 * byte, a.block), end = (block + 1) * a.block;
        A zero = a.scales[2 * block], one = a.scales[2 * block + 1];
        Pack<Stored, 8> pack;
#pragma unroll
        for (unsigned k = 0; k < 8; ++k) {
            const u64 i = 8 * byte + k;
            if (i >= end && i < a.n) {
                ++block;
                end += a.block;
                zero = a.scales[2 * block];
                one = a.scales[2 * block + 1];
            }
            pack.at[k] = STORAGE::store(bits >> k & 1u ? one : zero);
        }
        if (wide && 8 * byte + 8 <= a.n) {
            *reinterpret_cast<Pack<Stored, 8> *>(array.data + 8 * byte * sizeof(Stored)) = pack;
        } else {
            for (unsigned k = 0; k < 8 && 8 * byte + k < a.n; ++k) *place<Stored>(array, 8 * byte + k) = pack.at[k];
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// rotated

// The length of a block with so many elements.
__device__ __forceinline__ unsigned padded(const u64 elements) {
    unsigned length = SHORTEST;
    while (length < elements) length *= 2;
    return length;
}

// The thread's word of those that hold the signs of a rotation: places p with p mod 32 = t.
__device__ __forceinline__ unsigned sign_word(const Random &random, const u64 block, const unsigned rotation) {
    const unsigned lane = threadIdx.x % WARP;
    const Words words = random_block(random, SIGNS, 16 * block + 8 * rotation + lane / 4);
    const unsigned low = lane & 1 ? words.at[1] : words.at[0], high = lane & 1 ? words.at[3] : words.at[2];
    return lane & 2 ? high : low;
}

__device__ __forceinline__ float flip(const float x, const unsigned bit) {
    return __uint_as_float(__float_as_uint(x) ^ bit << 31);
}
__device__ __forceinline__ double flip(const double x, const unsigned bit) {
    return __longlong_as_double(__double_as_longlong(x) ^ static_cast<long long>(u64(bit) << 63));
}
__device__ __forceinline__ int flip(const int x, const unsigned bit) { return bit ? -x : x; }

// The first rotation's signs: element 32k + t has bit k of word t.
template <typename T> __device__ __forceinline__ void flip_first(T (&x)[HELD], const unsigned word) {
#pragma unroll
    for (unsigned k = 0; k < HELD; ++k) x[k] = flip(x[k], word >> k & 1u);
}

// The second's: in a full block element e is at place 16·(e mod 64) + ⌊e/64⌋ meanwhile.
template <typename T> __device__ __forceinline__ void flip_second(T (&x)[HELD], const unsigned word, const unsigned d) {
    if (d < ROTATED) {
        flip_first(x, word);
        return;
    }
    const unsigned lane = threadIdx.x % WARP;
#pragma unroll
    for (unsigned k = 0; k < HELD; k += 2) {
        const unsigned of_places = __shfl_sync(ALL_LANES, word, static_cast<int>(16 * (lane & 1) + k / 2));
        x[k] = flip(x[k], of_places >> (lane / 2) & 1u);
        x[k + 1] = flip(x[k + 1], of_places >> (lane / 2 + 16) & 1u);
    }
}

// The level between elements that one thread holds: h = 32·DISTANCE.
template <unsigned DISTANCE, typename T> __device__ __forceinline__ void level_inside(T (&x)[HELD], const unsigned d) {
    if (32 * DISTANCE >= d) return;
#pragma unroll
    for (unsigned k = 0; k < HELD; ++k) {
        if (k & DISTANCE) continue;
        const T low = x[k], high = x[k + DISTANCE];
        x[k] = low + high;
        x[k + DISTANCE] = low - high;
    }
}

// The level between threads: h = DISTANCE.
template <unsigned DISTANCE, typename T> __device__ __forceinline__ void level_across(T (&x)[HELD]) {
    const bool upper = threadIdx.x & DISTANCE;
#pragma unroll
    for (unsigned k = 0; k < HELD; ++k) {
        const T other = __shfl_xor_sync(ALL_LANES, x[k], static_cast<int>(DISTANCE));
        x[k] = upper ? other - x[k] : x[k] + other;
    }
}

template <typename T> __device__ __forceinline__ void levels_across(T (&x)[HELD]) {
    level_across<16>(x);
    level_across<8>(x);
    level_across<4>(x);
    level_across<2>(x);
    level_across<1>(x);
}

template <typename T> __device__ __forceinline__ void first_levels(T (&x)[HELD], const unsigned d) {
    level_inside<16>(x, d);
    level_inside<8>(x, d);
    level_inside<4>(x, d);
    level_inside<2>(x, d);
    level_inside<1>(x, d);
    levels_across(x);
}

template <typename T> __device__ __forceinline__ void second_levels(T (&x)[HELD], const unsigned d) {
    level_inside<1>(x, d);
    levels_across(x);
    level_inside<2>(x, d);
    level_inside<4>(x, d);
    level_inside<8>(x, d);
    level_inside<16>(x, d);
}

// Bit k of thread t becomes bit t of thread k.
__device__ __forceinline__ unsigned transpose_bits(unsigned x) {
    const unsigned lane = threadIdx.x % WARP;
    unsigned mask = 0x0000ffffu;
#pragma unroll
    for (unsigned distance = 16; distance > 0; distance /= 2) {
        const unsigned other = __shfl_xor_sync(ALL_LANES, x, static_cast<int>(distance));
        x = lane & distance ? (x & ~mask) | (other >> distance & mask) : (x & mask) | (other & mask) << distance;
        mask ^= mask << (distance / 2);
    }
    return x;
}

// Σ x² or Σ |x| of the block by the canonical tree; the same in all threads.
template <bool SQUARES> __device__ __forceinline__ double sum(const A (&x)[HELD]) {
    double even = 0.0, odd = 0.0; // lanes t and t + 32
#pragma unroll
    for (unsigned k = 0; k < HELD; k += 2) {
        const double low = double(x[k]), high = double(x[k + 1]);
        even += SQUARES ? low * low : fabs(low);
        odd += SQUARES ? high * high : fabs(high);
    }
    return __shfl_sync(ALL_LANES, fold_halves(even, odd), 0);
}

extern "C" __global__ void __launch_bounds__(256, RESIDENT) encode_rotated(const OnebitArgs a) {
    const u64 block = u64(blockIdx.x) * (THREADS / WARP) + threadIdx.x / WARP;
    if (block >= a.blocks) return;
    const unsigned lane = threadIdx.x % WARP;
    const Array &array = *a.array;
    const u64 start = block * ROTATED, left = a.n - start < ROTATED ? a.n - start : ROTATED;
    const unsigned d = padded(left);
    A x[HELD];
    if (array.axes == 0) {
        const Stored *const data = reinterpret_cast<const Stored *>(array.data) + start;
#pragma unroll
        for (unsigned k = 0; k < HELD; ++k) x[k] = 32 * k + lane < left ? STORAGE::load(data[32 * k + lane]) : A(0);
    } else {
        // Unrolled, or x would have to be where it has addresses.
#pragma unroll
        for (unsigned k = 0; k < HELD; ++k) x[k] = 32 * k + lane < left ? load_anywhere(array, start + 32 * k + lane) : A(0);
    }
    // 2^200, 2^-60; 2^±900, 2^±600
    const double low = sizeof(A) == 4 ? 0.0 : __longlong_as_double(0x07b0000000000000LL);
    const double high = __longlong_as_double(sizeof(A) == 4 ? 0x4c70000000000000LL : 0x7830000000000000LL);
    const double up = __longlong_as_double(0x6570000000000000LL);
    const double down = __longlong_as_double(sizeof(A) == 4 ? 0x3c30000000000000LL : 0x1a70000000000000LL);
    double squares = sum<true>(x), back = 1.0;
    if (squares < low || squares > high) {
        const double factor = squares < low ? up : down;
#pragma unroll
        for (unsigned k = 0; k < HELD; ++k) x[k] *= A(factor);
        squares = sum<true>(x);
        back = 1.0 / factor;
    }
    flip_first(x, sign_word(a.random, block, 0));
    first_levels(x, d);
    flip_second(x, sign_word(a.random, block, 1), d);
    second_levels(x, d);
    const double absolute = sum<false>(x);
    const bool finite = squares - squares == 0.0;
    const A c = squares == 0.0 ? A(0) : finite ? A(squares / absolute * back) : not_a_number();
    unsigned bits = 0;
#pragma unroll
    for (unsigned k = 0; k < HELD; ++k) bits |= unsigned(x[k] >= A(0)) << k;
    bits = transpose_bits(bits);
    if (!(c > A(0) && c < A(infinity()))) bits = 0;
    // Thread t has elements 32t and up, and a block has a multiple of 32.
    if (32 * lane < d) reinterpret_cast<unsigned *>(a.bits)[start / 32 + lane] = bits;
    if (lane == 0) a.scales[block] = c;
}

extern "C" __global__ void __launch_bounds__(256, 2) decode_rotated(const OnebitArgs a) {
    const u64 block = u64(blockIdx.x) * (THREADS / WARP) + threadIdx.x / WARP;
    if (block >= a.blocks) return;
    const unsigned lane = threadIdx.x % WARP;
    const Array &array = *a.array;
    const u64 start = block * ROTATED, left = a.n - start < ROTATED ? a.n - start : ROTATED;
    const unsigned d = padded(left);
    unsigned bits = 0;
    if (32 * lane < d) {
        // Byte by byte: they may have been received anywhere.
        const unsigned char *const bytes = a.bits + start / 8 + 4 * lane;
        bits = bytes[0] | unsigned(bytes[1]) << 8 | unsigned(bytes[2]) << 16 | unsigned(bytes[3]) << 24;
    }
    bits = transpose_bits(bits);
    int x[HELD];
#pragma unroll
    for (unsigned k = 0; k < HELD; ++k) x[k] = bits >> k & 1u ? 1 : -1;
    first_levels(x, d);
    flip_second(x, sign_word(a.random, block, 1), d);
    second_levels(x, d);
    flip_first(x, sign_word(a.random, block, 0));
    const A c = a.scales[block];
#pragma unroll
    for (unsigned k = 0; k < HELD; ++k) {
        // Modulo 2^16, as on the CPU; not -0.
        const A value = c == A(0) ? A(0) : c * A(static_cast<short>(x[k]));
        if (32 * k + lane >= left) continue;
        if (array.axes == 0) reinterpret_cast<Stored *>(array.data)[start + 32 * k + lane] = STORAGE::store(value);
        else store_anywhere(array, start + 32 * k + lane, value);
    }
}
