// The canonical summation tree (rust/reduce.rs) on a warp and on a block of threads: the same additions, the same bits.
//
// Block b = i / BLOCK holds terms i in C order; in a block, lane l = i % LANES adds its terms in rising order; lanes
// fold by halves, l += l + 32, + 16, ... + 1; the blocks' sums combine by adjacent pairs, level by level, an odd last
// one moving up. Accumulators start at +0, so no lane and no sum is ever -0, and adding +0 changes none: what is absent
// may be taken as +0, and any aligned power of two of neighbours can be combined on its own.

// Threads that `combine` and `combine_columns` are called by.
constexpr unsigned COMBINE_THREADS = 256;

// The sum of a block whose lanes t and t + 32 thread t holds; valid in thread 0. Called by a whole warp.
__device__ __forceinline__ double fold_halves(double low, double high) {
    double sum = low + high;
    for (unsigned half = 16; half > 0; half /= 2) sum += __shfl_down_sync(ALL_LANES, sum, half);
    return sum;
}

// The sum of a block whose lanes 2t and 2t + 1 thread t holds; valid in thread 0. Called by a whole warp.
__device__ __forceinline__ double fold_lanes(double even, double odd) {
    for (unsigned half = 16; half > 0; half /= 2) {
        even += __shfl_down_sync(ALL_LANES, even, half);
        odd += __shfl_down_sync(ALL_LANES, odd, half);
    }
    return even + odd;
}

// Adjacent pairs of a warp's 32 sums; valid in thread 0. Called by a whole warp.
__device__ __forceinline__ double combine_warp(double sum) {
    for (unsigned step = 1; step < WARP; step *= 2) sum += __shfl_down_sync(ALL_LANES, sum, step);
    return sum;
}

// Adjacent pairs of up to 16 sums, one every `step`; the absent ones are +0.
__device__ __forceinline__ double combine_run(const double *sums, u64 step, u64 n) {
    double run[16];
#pragma unroll
    for (unsigned i = 0; i < 16; ++i) run[i] = i < n ? sums[i * step] : 0.0;
#pragma unroll
    for (unsigned gap = 1; gap < 16; gap *= 2) {
#pragma unroll
        for (unsigned i = 0; i < 16; i += 2 * gap) run[i] += run[i + gap];
    }
    return run[0];
}

// Combines n sums in global memory by adjacent pairs; 0 of none. Called by a whole block of 256 threads, the result is
// valid in all of them. Overwrites sums. What other blocks wrote must be visible: take a ticket and a fence first.
__device__ double combine(double *sums, u64 n) {
    constexpr unsigned RUN = 16, TILE = RUN * WARP, TILES = 512, WARPS = COMBINE_THREADS / WARP;
    __shared__ double of_tiles[TILES];
    __shared__ double of_warps[WARPS];
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    // One round does for 2^18 sums, which is 2^30 terms.
    while (true) {
        const u64 chunks = n <= TILE * TILES ? 1 : (n + TILE * TILES - 1) / (TILE * TILES);
        double total = 0.0;
        for (u64 chunk = 0; chunk < chunks; ++chunk) {
            const u64 start = chunk * TILE * TILES;
            const u64 left = n - start < TILE * TILES ? n - start : TILE * TILES;
            const unsigned tiles = (unsigned)((left + TILE - 1) / TILE);
            // The last round's readers, and in the first round the callers' writers, are done.
            __syncthreads();
            for (unsigned tile = warp; tile < tiles; tile += WARPS) {
                const u64 at = tile * TILE + lane * RUN;
                const double sum = combine_warp(combine_run(sums + start + at, 1, at < left ? left - at : 0));
                if (lane == 0) of_tiles[tile] = sum;
            }
            __syncthreads();
            const unsigned pair = 2 * threadIdx.x;
            const double even = pair < tiles ? of_tiles[pair] : 0.0, odd = pair + 1 < tiles ? of_tiles[pair + 1] : 0.0;
            const double sum = combine_warp(even + odd);
            if (lane == 0) of_warps[warp] = sum;
            __syncthreads();
            total = combine_run(of_warps, 1, WARPS);
            // This place was read in an earlier chunk, or in this one before the barriers.
            if (chunks > 1 && threadIdx.x == 0) sums[chunk] = total;
        }
        if (chunks == 1) return total;
        n = chunks;
    }
}

// The root of a sum of squares as root * 2^power, so that it neither overflows nor underflows; the power is 0 unless the
// squares did.
struct Norm {
    double root;
    int power;
    __device__ __forceinline__ double value() const { return times_two_to(root, power); }
};

__device__ __forceinline__ double infinity() { return __longlong_as_double(0x7ff0000000000000LL); }

// Whether squares with this sum may have overflowed, or lost terms to underflow.
__device__ __forceinline__ bool is_rare(const double total) { return total == infinity() || total < two_to(-900); }

// What is done with terms: they are squared and added.
struct Squares {
    __device__ __forceinline__ void add(double &lane, const double x) const { lane += x * x; }
    __device__ __forceinline__ double fold(const double even, const double odd) const { return fold_lanes(even, odd); }
};

// Where that was rare: the largest of them is asked for, or they are multiplied by 2^-power, squared and added.
struct Rare {
    bool scales;
    int power;

    __device__ __forceinline__ void add(double &lane, const double x) const {
        const double size = fabs(x), scaled = scales ? times_two_to(x, -power) : 0.0;
        lane = scales ? lane + scaled * scaled : lane < size ? size : lane;
    }

    __device__ __forceinline__ double fold(const double even, const double odd) const {
        if (scales) return fold_lanes(even, odd);
        double largest = even < odd ? odd : even;
        for (unsigned half = 16; half > 0; half /= 2) {
            const double other = __shfl_down_sync(ALL_LANES, largest, half);
            largest = largest < other ? other : largest;
        }
        return largest;
    }
};

// The largest of n numbers that are not negative; valid in all threads of the block, which calls this.
__device__ __forceinline__ double largest_of(const double *numbers, const u64 n) {
    __shared__ double of_warps[COMBINE_THREADS / WARP];
    double largest = 0.0;
    __syncthreads();
    for (u64 i = threadIdx.x; i < n; i += blockDim.x) largest = largest < numbers[i] ? numbers[i] : largest;
    largest = Rare{false, 0}.fold(largest, 0.0);
    if (threadIdx.x % WARP == 0) of_warps[threadIdx.x / WARP] = largest;
    __syncthreads();
    for (unsigned warp = 0; warp < COMBINE_THREADS / WARP; ++warp) {
        largest = warp == 0 || largest < of_warps[warp] ? of_warps[warp] : largest;
    }
    return largest;
}

// The norm whose sum of squares is `total`, of what has n blocks: `ask` has a warp answer for one of them, in its first
// thread. Called by a whole block of 256 threads, valid in all of them; overwrites the blocks' sums.
template <typename Ask> __device__ Norm norm_of(const double total, double *sums, const u64 n, const Ask &ask) {
    if (!is_rare(total)) return {sqrt(total), 0};
    int power = 0;
    for (unsigned pass = 0; pass < 2; ++pass) {
        __syncthreads();
        for (u64 block = threadIdx.x / WARP; block < n; block += COMBINE_THREADS / WARP) {
            const double answer = ask(block, Rare{pass == 1, power});
            if (threadIdx.x % WARP == 0) sums[block] = answer;
        }
        if (pass == 1) break;
        const double largest = largest_of(sums, n);
        if (!(largest > 0.0 && largest < infinity())) return {sqrt(total), 0};
        power = exponent(largest);
    }
    return {sqrt(combine(sums, n)), power};
}

// What gradients are multiplied by to be clipped, if they are: fraction * 2^power, as on the host.
struct Clip {
    bool clips;
    double fraction;
    int power;

    // limit / (norm + eps)
    __device__ Clip(const Norm limit, const Norm norm, const double eps) : clips(true), fraction(0.0), power(0) {
        const double longest = limit.value(), length = norm.value() + eps;
        const bool finite = limit.root < infinity() && norm.root < infinity();
        const bool tells = !finite || longest < infinity() || length < infinity();
        // Not `length > longest`: the step of a NaN norm is NaN everywhere, not unclipped.
        if (length <= longest && tells) {
            clips = false;
        } else if (!finite || limit.root == 0.0) {
            fraction = longest / length;
        } else {
            const bool fits = length < infinity();
            const double below = fits ? length : norm.root + times_two_to(eps, -norm.power);
            const int above = exponent(limit.root), under = exponent(below);
            fraction = times_two_to(limit.root, -above) / times_two_to(below, -under);
            power = above + limit.power - under - (fits ? 0 : norm.power);
            if (fraction < 1.0) {
                fraction = 2.0 * fraction;
                power -= 1;
            }
            clips = tells || power < 0;
        }
    }

    // For elements of float32, or of float64, that are multiplied by `unscale` first unless it is 0: the shift and the
    // factor, by which 2^-shift * x is multiplied.
    __device__ int shift(const bool narrow, const double unscale) const {
        const int least = narrow ? -126 : -1022, most = (unscale == 0.0 ? 0 : exponent(unscale)) - least;
        const int wanted = least - power;
        return wanted < 0 || most < 0 ? 0 : wanted < most ? wanted : most;
    }
    __device__ double factor(const int shift) const { return times_two_to(fraction, power + shift); }
};

// Combines n rows of `width` sums, one every `step`, column by column; the result overwrites the first row, and is
// visible to the whole block of 256 threads, which calls this. As `combine` otherwise; n is at least 1.
__device__ void combine_columns(double *sums, u64 n, unsigned width, u64 step) {
    const unsigned column = threadIdx.x % width, threads = COMBINE_THREADS / width;
    __syncthreads();
    for (u64 gap = 1; gap < n; gap *= 16) {
        // A run's sum goes where its first term was, which nobody else reads.
        const u64 present = (n + gap - 1) / gap;
        for (u64 at = threadIdx.x / width * 16; at < present && threadIdx.x < threads * width; at += 16 * threads) {
            double *first = sums + at * gap * step + column;
            *first = combine_run(first, gap * step, present - at);
        }
        __syncthreads();
    }
}
