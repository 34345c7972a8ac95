// Clipping unit by unit (rust/step/units.rs): each row of a gradient by the norm of the same row of its parameter. The
// units' axis is the first; STORAGES are those of parameters and gradients in this list.

struct UnitsArgs {
    const Array *parameters, *gradients; // `first` is the number of its first unit
    const u64 *blocks;                   // the number of its first unit's first block
    double *squares;                     // of each block, of parameters and then of gradients
    u64 count, units, total;             // how many arrays, units, blocks
    double clipping, eps;
};

// The sum of a block of elements start..end, which have a tree of their own. Called by a warp; valid in its first thread.
template <typename S, typename Sum>
__device__ __forceinline__ double sum_block(const Array &array, const u64 start, const u64 end, const u64 block, const Sum sum) {
    const u64 first = start + block * BLOCK, last = first + BLOCK < end ? first + BLOCK : end;
    double lanes[2] = {0.0, 0.0};
    for (u64 i = first + 2 * (threadIdx.x % WARP); i < last; i += LANES) {
        for (unsigned lane = 0; lane < 2 && i + lane < last; ++lane) {
            sum.add(lanes[lane], S::load(*place<const typename S::Stored>(array, i + lane)));
        }
    }
    return sum.fold(lanes[0], lanes[1]);
}

template <typename Sum>
__device__ __forceinline__ double sum_block_of(const Array &array, const u64 start, const u64 end, const u64 block, const Sum sum) {
    switch (array.storage) {
#define SUMMED(S) \
    case STORAGE_##S: return sum_block<S>(array, start, end, block, sum);
        STORAGES(SUMMED)
    }
    return 0.0;
}

// The norm of elements start..end, which have so many blocks. Called by a block of threads.
__device__ Norm norm_of_unit(const Array &array, const u64 start, const u64 end, double *squares, const u64 blocks) {
    for (u64 block = threadIdx.x / WARP; block < blocks; block += blockDim.x / WARP) {
        const double sum = sum_block_of(array, start, end, block, Squares());
        if (threadIdx.x % WARP == 0) squares[block] = sum;
    }
    const double total = combine(squares, blocks);
    // Squares of float32 neither overflow nor underflow.
    if (array.storage != STORAGE_F64) return {sqrt(total), 0};
    const auto ask = [&](const u64 block, const Rare rare) { return sum_block_of(array, start, end, block, rare); };
    return norm_of(total, squares, blocks, ask);
}

template <typename S>
__device__ __forceinline__ void scale_unit(const Array &array, const u64 start, const u64 end, const Clip &clip) {
    typedef typename S::Computed A;
    const int shift = clip.shift(sizeof(A) == 4, 0.0);
    const A first = A(two_to(-shift)), scale = A(clip.factor(shift));
    for (u64 i = start + threadIdx.x; i < end; i += blockDim.x) {
        typename S::Stored *const x = place<typename S::Stored>(array, i);
        *x = S::store(S::load(*x) * first * scale);
    }
}

// A block of threads for each unit.
extern "C" __global__ void __launch_bounds__(256, 2) clip_units(const UnitsArgs a) {
    for (u64 unit = blockIdx.x; unit < a.units; unit += gridDim.x) {
        const u64 of = find(a.gradients, a.count, unit);
        const Array &parameter = a.parameters[of], &gradient = a.gradients[of];
        const u64 next = of + 1 < a.count ? a.gradients[of + 1].first : a.units;
        const u64 length = gradient.length / (next - gradient.first), blocks = (length + BLOCK - 1) / BLOCK;
        const u64 start = (unit - gradient.first) * length, end = start + length;
        double *const of_parameter = a.squares + a.blocks[of] + (unit - gradient.first) * blocks;
        double *const of_gradient = of_parameter + a.total;
        const Norm of_w = norm_of_unit(parameter, start, end, of_parameter, blocks);
        const Norm norm = norm_of_unit(gradient, start, end, of_gradient, blocks);
        const double size = of_w.value();
        Norm limit = {a.clipping * of_w.root, of_w.power};
        // NaN stays.
        if (size < infinity() || size != size) limit = {a.clipping * (a.eps < size ? size : size == size ? a.eps : size), 0};
        const Clip clip(limit, norm, 0.0);
        if (!clip.clips) continue;
        switch (gradient.storage) {
#define SCALED_UNIT(S) \
    case STORAGE_##S: scale_unit<S>(gradient, start, end, clip); break;
            STORAGES(SCALED_UNIT)
        }
    }
}
