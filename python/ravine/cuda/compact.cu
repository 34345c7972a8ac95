// States in fewer bytes: rust/codec.rs on a device, with its bits; what the codes stand for is said there.
//
// COMPACT(X) has X(k, WAY) for each state k of the rule that is kept so. A warp takes the elements that share a scale,
// four neighbours for a thread and then four more, so that it needs no other warp.

// How a state is kept: in float32, in bfloat16, in eight bits.
enum Way : unsigned { FULL, BFLOAT16, SIGNED8, UNSIGNED8 };

__device__ __forceinline__ constexpr Way way(const unsigned state) {
#define KEPT_SO(K, WAY) \
    if (state == K) return WAY;
    COMPACT(KEPT_SO)
    return FULL;
}

// Bytes of an element.
__device__ __forceinline__ constexpr unsigned size_of(const Way way) {
    return way == FULL ? 4 : way == BFLOAT16 ? 2 : 1;
}

constexpr unsigned CODES = 256; // that share a scale
constexpr unsigned WIDTH = 4;   // neighbours that a thread has
constexpr unsigned PARTS = CODES / (WARP * WIDTH);

// Where a thread's neighbours are in a part of a block of codes, and how many there are.
struct Here {
    u64 i;
    unsigned count;

    __device__ __forceinline__ Here(const u64 first, const unsigned part, const u64 end)
        : i(first + (part * WARP + threadIdx.x % WARP) * WIDTH),
          count(i >= end ? 0 : end - i < WIDTH ? static_cast<unsigned>(end - i) : WIDTH) {}
};

// The first `count` of some neighbours, which are aligned if all are there; 0 for the others.
template <unsigned N, typename T> __device__ __forceinline__ Pack<T, N> some(const T *from, const unsigned count) {
    if (count == N) return *reinterpret_cast<const Pack<T, N> *>(from);
    Pack<T, N> x = {};
#pragma unroll
    for (unsigned j = 0; j < N; ++j) {
        if (j < count) x.at[j] = from[j];
    }
    return x;
}

template <unsigned N, typename T>
__device__ __forceinline__ void put(const Pack<T, N> &x, T *const to, const unsigned count) {
    if (count == N) {
        *reinterpret_cast<Pack<T, N> *>(to) = x;
        return;
    }
#pragma unroll
    for (unsigned j = 0; j < N; ++j) {
        if (j < count) to[j] = x.at[j];
    }
}

// The same of arrays that may lie anywhere. The loop over axes is there once, not for each of the neighbours; what a
// loop that is not unrolled indexes is in local memory, and only here.
template <typename T> __device__ __forceinline__ Pack<T, WIDTH> gather(const Array &array, const Here &here) {
    T found[WIDTH] = {};
#pragma unroll 1
    for (unsigned j = 0; j < here.count; ++j) found[j] = *place<const T>(array, here.i + j);
    Pack<T, WIDTH> x;
#pragma unroll
    for (unsigned j = 0; j < WIDTH; ++j) x.at[j] = found[j];
    return x;
}

template <typename T>
__device__ __forceinline__ void scatter(const Pack<T, WIDTH> &x, const Array &array, const Here &here) {
    T made[WIDTH];
#pragma unroll
    for (unsigned j = 0; j < WIDTH; ++j) made[j] = x.at[j];
#pragma unroll 1
    for (unsigned j = 0; j < here.count; ++j) *place<T>(array, here.i + j) = made[j];
}

// The random bytes that round a thread's elements: of element j of a part, byte j of at[part]. A word is for four
// neighbours: word w of random block l of 16 is for those that number 16 w + l of the 64 in a block of codes.
struct Draws {
    unsigned at[PARTS];

    __device__ __forceinline__ Draws() {}

    __device__ __forceinline__ unsigned byte(const unsigned part, const unsigned j) const {
        return at[part] >> 8 * j & 0xffu;
    }

    __device__ __forceinline__ Draws(const Random &random, const u64 first) {
        const unsigned lane = threadIdx.x % WARP;
        const Words words = random_block(random, ROUNDING, first / 16 + lane % 16);
#pragma unroll
        for (unsigned part = 0; part < PARTS; ++part) {
            at[part] = lane < 16 ? words.at[2 * part] : words.at[2 * part + 1];
        }
    }
};

constexpr unsigned ONE = 0x3f800000u; // the bits of 1

// For 0 <= x <= 1 a root, 2nd (K = 1) or 4th (K = 2), that is linear between powers of 2.
template <unsigned K> __device__ __forceinline__ float root(const float x) {
    return __uint_as_float((__float_as_uint(x) >> K) + (ONE - (ONE >> K)));
}

// What it is the root of.
template <unsigned K> __device__ __forceinline__ float unrooted(const float y) {
    const unsigned zero = ONE - (ONE >> K), bits = __float_as_uint(y);
    return __uint_as_float((bits > zero ? bits - zero : 0u) << K);
}

// q / 256 as the integer below or above it, by a random byte, in the lowest byte; 0 <= q < 2^16.
__device__ __forceinline__ unsigned rounded(const float q, const unsigned byte) {
    return (__float_as_uint(q + 8388608.0f) + byte) >> 8;
}

__device__ __forceinline__ unsigned char signed_code(const float x, const float inverse, const unsigned mask,
                                                     const unsigned byte) {
    const unsigned bits = __float_as_uint(x), sign = bits >> 31 ? ~0u : 0u;
    const unsigned q = rounded(root<1>(__uint_as_float(bits & mask) * inverse) * (127.0f * 256.0f), byte);
    return static_cast<unsigned char>((q ^ sign) - sign);
}

__device__ __forceinline__ unsigned char unsigned_code(const float x, const float inverse, const unsigned mask,
                                                       const unsigned byte) {
    const unsigned bits = __float_as_uint(x) & mask;
    const unsigned q = rounded(root<2>(__uint_as_float(bits) * inverse) * (255.0f * 256.0f), byte) & 0xffu;
    return static_cast<unsigned char>(q == 0 && bits != 0 ? 1u : q);
}

__device__ __forceinline__ float of_signed_code(const unsigned char code, const float scale) {
    const float q = float(static_cast<signed char>(code));
    return copysign(scale * unrooted<1>(fabs(q) * (1.0f / 127.0f)), q);
}

__device__ __forceinline__ float of_unsigned_code(const unsigned char code, const float scale) {
    return scale * unrooted<2>(float(code) * (1.0f / 255.0f));
}

__device__ __forceinline__ unsigned short rounded_by(const float x, const unsigned added) {
    const unsigned bits = __float_as_uint(x), size = bits & 0x7fffffffu;
    const unsigned nan = size > 0x7f800000u ? 0x40u : 0u;
    // The largest finite numbers stay finite.
    return static_cast<unsigned short>((bits + (size < 0x7f7f0000u ? added : 0u)) >> 16 | nan);
}

template <typename P> constexpr bool IS_RANDOM = false;
template <> constexpr bool IS_RANDOM<BF16_RANDOM> = true;

// A parameter as it is stored: if at random, by its own byte, and above it that of the element half a block away.
template <typename P>
__device__ __forceinline__ typename P::Stored stored_so(const float x, const Draws &draws, const unsigned part,
                                                        const unsigned j) {
    if constexpr (IS_RANDOM<P>) return rounded_by(x, draws.byte(PARTS - 1 - part, j) << 8 | draws.byte(part, j));
    else return P::store(x);
}

// One for each block of codes. Codes have no axes, and their address in the place of a length.
__device__ __forceinline__ float *scales_of(const Array &state) { return reinterpret_cast<float *>(state.lengths[0]); }

// The number that `bits` are.
__device__ __forceinline__ float of_bits(const unsigned bits, const Way way, const float scale) {
    if (way == FULL) return __uint_as_float(bits);
    if (way == BFLOAT16) return BF16::load(static_cast<unsigned short>(bits));
    const unsigned char code = static_cast<unsigned char>(bits);
    return way == SIGNED8 ? of_signed_code(code, scale) : of_unsigned_code(code, scale);
}

// The bits of an element of a state: they lie one after the other, and were allocated as a whole.
__device__ __forceinline__ unsigned bits_at(const Array &state, const Way way, const u64 i) {
    if (way == FULL) return reinterpret_cast<const unsigned *>(state.data)[i];
    if (way == BFLOAT16) return reinterpret_cast<const unsigned short *>(state.data)[i];
    return reinterpret_cast<const unsigned char *>(state.data)[i];
}

__device__ __forceinline__ float scale_at(const Array &state, const Way way, const u64 i) {
    return way == SIGNED8 || way == UNSIGNED8 ? scales_of(state)[i / CODES] : 0.0f;
}

// An element of a state.
__device__ __forceinline__ float load_state(const Array &state, const Way way, const u64 i) {
    return of_bits(bits_at(state, way, i), way, scale_at(state, way, i));
}

// A thread's neighbours in a state as they are stored, in as many words as they need: they take few registers so.
struct Stored {
    unsigned at[WIDTH];

    // All of them.
    __device__ __forceinline__ void load(const Array &state, const Way way, const u64 i) {
        const char *const from = state.data + i * size_of(way);
        if (way == FULL) take(*reinterpret_cast<const Pack<unsigned, WIDTH> *>(from));
        else if (way == BFLOAT16) take(*reinterpret_cast<const Pack<unsigned, WIDTH / 2> *>(from));
        else take(*reinterpret_cast<const Pack<unsigned, WIDTH / 4> *>(from));
    }

    // Those that are there.
    __device__ __forceinline__ void load(const Array &state, const Way way, const Here &here) {
        const unsigned size = size_of(way);
#pragma unroll
        for (unsigned j = 0; j < WIDTH; ++j) at[j] = 0;
#pragma unroll
        for (unsigned j = 0; j < WIDTH; ++j) {
            if (j < here.count) at[j * size / 4] |= bits_at(state, way, here.i + j) << 8 * (j * size % 4);
        }
    }

    __device__ __forceinline__ float get(const unsigned j, const Way way, const float scale) const {
        const unsigned size = size_of(way);
        return of_bits(at[j * size / 4] >> 8 * (j * size % 4), way, scale);
    }

  private:
    template <unsigned N> __device__ __forceinline__ void take(const Pack<unsigned, N> &words) {
#pragma unroll
        for (unsigned j = 0; j < N; ++j) at[j] = words.at[j];
    }
};

// The largest |x| that a warp has, by its bits, which are in the numbers' order; NaN if one is. Called by all of it.
__device__ __forceinline__ unsigned largest_of(const Pack<float, WIDTH> *const x) {
    unsigned largest = 0;
#pragma unroll
    for (unsigned at = 0; at < PARTS * WIDTH; ++at) {
        const unsigned bits = __float_as_uint(x[at / WIDTH].at[at % WIDTH]) & 0x7fffffffu;
        largest = bits > largest ? bits : largest;
    }
    for (unsigned lanes = 16; lanes > 0; lanes /= 2) {
        const unsigned other = __shfl_xor_sync(ALL_LANES, largest, static_cast<int>(lanes));
        largest = other > largest ? other : largest;
    }
    return largest;
}

// The new state of the elements from `first` on that share a scale, those before `end`. Called by a whole warp.
__device__ __forceinline__ void store_state(const Pack<float, WIDTH> *const x, const Array &state, const Way way,
                                            const u64 first, const u64 end, const Draws &draws) {
    float inverse = 0.0f;
    unsigned mask = 0;
    if (way == SIGNED8 || way == UNSIGNED8) {
        const unsigned largest = largest_of(x), smallest_normal = 0x00800000u;
        // 1 / scale must be finite.
        const unsigned scale = largest > 0 && largest < smallest_normal ? smallest_normal : largest;
        if (threadIdx.x % WARP == 0) scales_of(state)[first / CODES] = __uint_as_float(scale);
        if (scale > 0 && scale < 0x7f800000u) {
            inverse = 1.0f / __uint_as_float(scale);
            mask = 0x7fffffffu;
        }
    }
#pragma unroll
    for (unsigned part = 0; part < PARTS; ++part) {
        const Here here(first, part, end);
        if (way == FULL) {
            put(x[part], reinterpret_cast<float *>(state.data) + here.i, here.count);
            continue;
        }
        Pack<unsigned short, WIDTH> halves;
        Pack<unsigned char, WIDTH> codes;
#pragma unroll
        for (unsigned j = 0; j < WIDTH; ++j) {
            const unsigned byte = draws.byte(part, j);
            if (way == BFLOAT16) halves.at[j] = rounded_by(x[part].at[j], byte << 8 | 0x80u);
            if (way == SIGNED8) codes.at[j] = signed_code(x[part].at[j], inverse, mask, byte);
            if (way == UNSIGNED8) codes.at[j] = unsigned_code(x[part].at[j], inverse, mask, byte);
        }
        if (way == BFLOAT16) put(halves, reinterpret_cast<unsigned short *>(state.data) + here.i, here.count);
        else put(codes, reinterpret_cast<unsigned char *>(state.data) + here.i, here.count);
    }
}
