// The norm of all gradients and what is not finite in them; STORAGES are those of the gradients in this list.

// What is beyond the limit in a block or an array: how many elements, and the index of the first, ~0 for none.
struct Beyond {
    u64 count, first;
};

struct MeasureArgs {
    const Array *arrays;
    double *squares;   // of each block; null: not asked
    Beyond *beyond;    // of each block; null: not asked
    u64 count, blocks;
    double clip_value; // each element is cut off at this first; infinite: none
    double limits[2];  // in f64 and in f32; elements above it in magnitude are beyond, and NaN
    double grad_scale; // what all of them come multiplied by; 0: nothing
    const LossScale *dynamic; // and this; null: not
};

__device__ __forceinline__ void merge(Beyond &a, const Beyond &b) {
    a.count += b.count;
    a.first = b.first < a.first ? b.first : a.first;
}

// Merges what the threads of a warp hold; valid in its first.
__device__ __forceinline__ void merge_warp(Beyond &found) {
    for (unsigned distance = WARP / 2; distance > 0; distance /= 2) {
        const Beyond other = {__shfl_down_sync(ALL_LANES, found.count, distance),
                              __shfl_down_sync(ALL_LANES, found.first, distance)};
        merge(found, other);
    }
}

// One warp measures one block: thread t holds lanes 2t and 2t + 1 of the summation tree.
template <typename S> __device__ __forceinline__ void measure_block(const MeasureArgs &a, const Array &array, const u64 block) {
    typedef typename S::Computed A;
    typedef typename S::Stored Stored;
    const Range range = elements(array, block);
    const unsigned thread = threadIdx.x % WARP;
    const bool wide = array.axes == 0 && reinterpret_cast<u64>(array.data) % (2 * sizeof(Stored)) == 0;
    const bool clips = a.clip_value < __longlong_as_double(0x7ff0000000000000LL);
    const A clip = A(a.clip_value), limit = A(a.limits[sizeof(A) == 4]);
    const bool unscales = a.grad_scale != 0.0;
    const A unscale = A(unscale_of(a.grad_scale, a.dynamic));
    double lanes[2] = {0.0, 0.0};
    Beyond found = {0, ~0ull};
    const auto add = [&](const Stored stored, const u64 i, double &lane) {
        A x = S::load(stored);
        if (unscales) x = x * unscale;
        // Not `> limit`: NaN is beyond it too.
        if (!(fabs(x) <= limit)) merge(found, {1, i});
        if (clips) {
            x = -clip < x ? x : x == x ? -clip : x;
            x = x < clip ? x : x == x ? clip : x;
        }
        lane += double(x) * double(x);
    };
    u64 i = range.start + 2 * thread;
    if (wide) {
        const Stored *const data = reinterpret_cast<const Stored *>(array.data);
        constexpr unsigned AHEAD = 8; // loads in flight
        for (; i + (AHEAD - 1) * LANES + 1 < range.end; i += AHEAD * LANES) {
            Pack<Stored, 2> x[AHEAD];
            for (unsigned k = 0; k < AHEAD; ++k) x[k] = *reinterpret_cast<const Pack<Stored, 2> *>(data + i + k * LANES);
            for (unsigned k = 0; k < AHEAD; ++k) {
                add(x[k].at[0], i + k * LANES, lanes[0]);
                add(x[k].at[1], i + k * LANES + 1, lanes[1]);
            }
        }
    }
    for (; i < range.end; i += LANES) {
        add(*place<const Stored>(array, i), i, lanes[0]);
        if (i + 1 < range.end) add(*place<const Stored>(array, i + 1), i + 1, lanes[1]);
    }
    if (a.squares) {
        const double sum = fold_lanes(lanes[0], lanes[1]);
        if (thread == 0) a.squares[block] = sum;
    }
    if (a.beyond) {
        merge_warp(found);
        if (thread == 0) a.beyond[block] = found;
    }
}

extern "C" __global__ void __launch_bounds__(256, 2) measure(const MeasureArgs a) {
    const u64 block = u64(blockIdx.x) * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (block >= a.blocks) return;
    const Array &array = a.arrays[find(a.arrays, a.count, block)];
    if (!array.data) {
        // It keeps its place in the tree, as a sum of 0.
        if (threadIdx.x % WARP == 0 && a.squares) a.squares[block] = 0.0;
        if (threadIdx.x % WARP == 0 && a.beyond) a.beyond[block] = {0, ~0ull};
        return;
    }
    switch (array.storage) {
#define STORAGE(S) \
    case STORAGE_##S: measure_block<S>(a, array, block); break;
        STORAGES(STORAGE)
    }
}

// What is asked of a block, as `measure_block` squares its elements. Called by a warp; valid in its first thread.
template <typename S>
__device__ double ask_block(const Array &array, const Range range, const double unscale, const double clip_value, const Rare rare) {
    typedef typename S::Computed A;
    const A clip = A(clip_value);
    double lanes[2] = {0.0, 0.0};
    for (u64 i = range.start + 2 * (threadIdx.x % WARP); i < range.end; i += LANES) {
        for (unsigned lane = 0; lane < 2 && i + lane < range.end; ++lane) {
            A x = S::load(*place<const typename S::Stored>(array, i + lane));
            if (unscale != 0.0) x = x * A(unscale);
            if (clip_value < infinity()) {
                x = -clip < x ? x : x == x ? -clip : x;
                x = x < clip ? x : x == x ? clip : x;
            }
            rare.add(lanes[lane], double(x));
        }
    }
    return rare.fold(lanes[0], lanes[1]);
}

__device__ double ask(const Array &array, const Range range, const double unscale, const double clip_value, const Rare rare) {
    switch (array.data ? array.storage : ~0ull) {
#define ASKED(S) \
    case STORAGE_##S: return ask_block<S>(array, range, unscale, clip_value, rare);
        STORAGES(ASKED)
    }
    return 0.0;
}

// Says what becomes of gradients of this norm.
__device__ __forceinline__ void judge_norm(Verdict &verdict, const Norm norm, const double clip_norm, const double clip_eps) {
    const Clip clip({clip_norm, 0}, norm, clip_eps);
    verdict.norm = norm.value();
    verdict.scales = clip.clips && clip_norm < infinity(); // else a NaN norm is only measured, too
    for (unsigned narrow = 0; verdict.scales && narrow < 2; ++narrow) {
        const int shift = clip.shift(narrow == 1, verdict.unscale);
        verdict.shift[narrow] = shift;
        verdict.scale[narrow] = clip.factor(shift);
    }
}

struct JudgeArgs {
    const Array *arrays;
    double *squares; // as measured; null: not asked
    Beyond *beyond;
    double *sums;    // of each array
    Beyond *found;   // in each array
    Verdict *verdict;
    const u64 *steps; // completed so far; null: nobody counts
    unsigned *ticket;
    u64 count, blocks;
    double clip_norm; // infinite: none
    double *norms;    // of each array; null: not asked
    double grad_scale;  // as measured
    LossScale *dynamic; // changed here
    double growth, backoff, least, most;
    u64 interval;
    double clip_eps;  // added to the norm that it divides by
};

// Combines what was measured: each array's blocks, then the arrays.
extern "C" __global__ void __launch_bounds__(256, 2) judge(const JudgeArgs a) {
    __shared__ Beyond of_warps[8];
    __shared__ u64 total;
    for (u64 i = blockIdx.x; i < a.count; i += gridDim.x) {
        const u64 first = a.arrays[i].first, end = i + 1 < a.count ? a.arrays[i + 1].first : a.blocks;
        if (a.squares) {
            const double sum = combine(a.squares + first, end - first);
            if (threadIdx.x == 0) a.sums[i] = sum;
            if (a.norms) {
                const Array &array = a.arrays[i];
                const auto of_block = [&](const u64 block, const Rare rare) {
                    return ask(array, elements(array, first + block), 0.0, infinity(), rare);
                };
                const Norm norm = norm_of(array.storage == STORAGE_F64 ? sum : 1.0, a.squares + first, end - first, of_block);
                if (threadIdx.x == 0) a.norms[i] = array.storage == STORAGE_F64 ? norm.value() : sqrt(sum);
            }
        }
        if (a.beyond) {
            Beyond found = {0, ~0ull};
            for (u64 block = first + threadIdx.x; block < end; block += blockDim.x) merge(found, a.beyond[block]);
            merge_warp(found);
            if (threadIdx.x % WARP == 0) of_warps[threadIdx.x / WARP] = found;
            __syncthreads();
            if (threadIdx.x == 0) {
                for (unsigned warp = 1; warp < blockDim.x / WARP; ++warp) merge(found, of_warps[warp]);
                a.found[i] = found;
            }
            __syncthreads();
        }
    }
    if (!last_block(a.ticket, gridDim.x)) return;
    if (threadIdx.x == 0) total = 0;
    __syncthreads();
    const double squares = a.squares ? combine(a.sums, a.count) : 0.0;
    u64 mine = 0;
    for (u64 i = threadIdx.x; a.beyond && i < a.count; i += blockDim.x) mine += a.found[i].count;
    if (mine > 0) atomicAdd(&total, mine);
    __syncthreads();
    if (threadIdx.x == 0) {
        const double unscale = unscale_of(a.grad_scale, a.dynamic);
        Verdict verdict = {0.0, {1.0, 1.0}, {0, 0}, 0, total > 0, 0, unscale, a.squares && is_rare(squares)};
        if (a.squares) judge_norm(verdict, {sqrt(squares), 0}, a.clip_norm, a.clip_eps);
        if (a.steps) verdict.steps = *a.steps + (total > 0 ? 0 : 1);
        *a.verdict = verdict;
        if (a.dynamic) {
            // As DynamicLossScale._update does.
            double value = a.dynamic->value;
            u64 good = total > 0 ? 0 : a.dynamic->good + 1;
            if (total > 0) {
                value = value * a.backoff;
                if (value < a.least) value = a.least;
            } else if (good == a.interval) {
                value = value * a.growth;
                if (value > a.most) value = a.most;
                good = 0;
            }
            a.dynamic->value = float(value);
            a.dynamic->good = good;
        }
    }
}

struct RescaleArgs {
    const Array *arrays;
    double *squares, *sums; // as of `judge`, and overwritten
    Verdict *verdict;       // changed here
    unsigned *ticket;
    u64 count, blocks;
    double clip_value, clip_norm, clip_eps; // as measured and judged
};

// Measures once more where squares of float64 have overflowed or underflowed, scaled by the largest element; else it
// returns at once. It follows `judge`, and nobody waits to learn whether it is needed.
extern "C" __global__ void __launch_bounds__(256, 2) rescale(const RescaleArgs a) {
    if (!a.verdict->rescales) return;
    constexpr unsigned WARPS = 256 / WARP;
    const unsigned warp = threadIdx.x / WARP;
    const auto answer = [&](const u64 i, const u64 block, const Rare rare) {
        const Array &array = a.arrays[i];
        const double found = ask(array, elements(array, block), a.verdict->unscale, a.clip_value, rare);
        if (threadIdx.x % WARP == 0) a.squares[block] = found;
    };
    for (u64 block = u64(blockIdx.x) * WARPS + warp; block < a.blocks; block += u64(gridDim.x) * WARPS) {
        answer(find(a.arrays, a.count, block), block, {false, 0});
    }
    if (!last_block(a.ticket, gridDim.x)) return;
    const double largest = largest_of(a.squares, a.blocks);
    if (!(largest > 0.0 && largest < infinity())) return;
    const int power = exponent(largest);
    __syncthreads();
    for (u64 i = 0; i < a.count; ++i) {
        const u64 first = a.arrays[i].first, end = i + 1 < a.count ? a.arrays[i + 1].first : a.blocks;
        for (u64 block = first + warp; block < end; block += WARPS) answer(i, block, {true, power});
        const double sum = combine(a.squares + first, end - first);
        if (threadIdx.x == 0) a.sums[i] = sum;
    }
    const double squares = combine(a.sums, a.count);
    if (threadIdx.x > 0) return;
    Verdict verdict = *a.verdict;
    judge_norm(verdict, {sqrt(squares), power}, a.clip_norm, a.clip_eps);
    *a.verdict = verdict;
}

struct AccumulateArgs {
    const Array *arrays; // gradients
    const Array *sums;   // contiguous, in what the arrays compute in
    u64 count, blocks;
    double weight; // 1: none
    u64 first;     // whether to overwrite the sums
};

template <typename S> __device__ __forceinline__ void add_block(const AccumulateArgs &a, const Array &array, const Array &sum, const u64 block) {
    typedef typename S::Computed A;
    const Range range = elements(sum, block);
    A *const sums = reinterpret_cast<A *>(sum.data);
    const A weight = A(a.weight);
    for (u64 i = range.start + threadIdx.x; i < range.end; i += blockDim.x) {
        A x = S::load(*place<const typename S::Stored>(array, i));
        if (a.weight != 1.0) x = x * weight;
        sums[i] = a.first ? x : sums[i] + x;
    }
}

template <typename A> __device__ __forceinline__ void clear_block(const Array &sum, const u64 block) {
    const Range range = elements(sum, block);
    for (u64 i = range.start + threadIdx.x; i < range.end; i += blockDim.x) reinterpret_cast<A *>(sum.data)[i] = 0;
}

// Adds each array, times a weight, to its sum; the first time in its place, and 0 for those that are not there.
extern "C" __global__ void __launch_bounds__(256, 2) accumulate(const AccumulateArgs a) {
    for (u64 block = blockIdx.x; block < a.blocks; block += gridDim.x) {
        const u64 i = find(a.arrays, a.count, block);
        const Array &array = a.arrays[i], &sum = a.sums[i];
        if (!array.data) {
            if (!a.first) continue;
            if (sum.storage == STORAGE_F64) clear_block<double>(sum, block);
            else clear_block<float>(sum, block);
            continue;
        }
        switch (array.storage) {
#define ADDED(S) \
    case STORAGE_##S: add_block<S>(a, array, sum, block); break;
            STORAGES(ADDED)
        }
    }
}

struct ScaleArgs {
    const Array *arrays;
    const Verdict *verdict;
    u64 count, blocks;
};

template <typename S>
__device__ __forceinline__ void scale_block(const Array &array, const u64 block, const Verdict &verdict) {
    typedef typename S::Computed A;
    constexpr bool narrow = sizeof(A) == 4;
    const A first = A(two_to(static_cast<int>(-verdict.shift[narrow]))), scale = A(verdict.scale[narrow]);
    const Range range = elements(array, block);
    for (u64 i = range.start + threadIdx.x; i < range.end; i += blockDim.x) {
        typename S::Stored *const x = place<typename S::Stored>(array, i);
        *x = S::store(S::load(*x) * first * scale);
    }
}

// Scales all arrays in place as the verdict says.
extern "C" __global__ void __launch_bounds__(256, 2) scale(const ScaleArgs a) {
    if (!a.verdict->scales) return;
    for (u64 block = blockIdx.x; block < a.blocks; block += gridDim.x) {
        const Array &array = a.arrays[find(a.arrays, a.count, block)];
        if (!array.data) continue;
        switch (array.storage) {
#define SCALED(S) \
    case STORAGE_##S: scale_block<S>(array, block, *a.verdict); break;
            STORAGES(SCALED)
        }
    }
}
