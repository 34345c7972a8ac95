// Clipping unit by unit (rust/step/units.rs): each row of a gradient by the norm of the same row of its parameter. The
// units' axis is the first; STORAGES are those of parameters and gradients in this list.

struct UnitsArgs {
    const Array *parameters, *gradients; // `first` is the number of its first unit
    const u64 *blocks;                   // the number of its first unit's first block
    double *squares;                     // of each block, of parameters and then of gradients
    u64 count, units, total;             // how many arrays, units, blocks
    double clipping, eps;
};

// The sums of squares of the blocks of elements start..end, which have a tree of their own. Called by a block of threads.
template <typename S>
__device__ __forceinline__ void square_blocks(const Array &array, const u64 start, const u64 end, double *squares) {
    typedef typename S::Stored Stored;
    const unsigned thread = threadIdx.x % WARP;
    for (u64 block = threadIdx.x / WARP; start + block * BLOCK < end; block += blockDim.x / WARP) {
        const u64 first = start + block * BLOCK, last = first + BLOCK < end ? first + BLOCK : end;
        double lanes[2] = {0.0, 0.0};
        for (u64 i = first + 2 * thread; i < last; i += LANES) {
            for (unsigned lane = 0; lane < 2 && i + lane < last; ++lane) {
                const double x = S::load(*place<const Stored>(array, i + lane));
                lanes[lane] += x * x;
            }
        }
        const double sum = fold_lanes(lanes[0], lanes[1]);
        if (thread == 0) squares[block] = sum;
    }
}

__device__ __forceinline__ void square_blocks_of(const Array &array, const u64 start, const u64 end, double *squares) {
    switch (array.storage) {
#define SQUARED(S) \
    case STORAGE_##S: square_blocks<S>(array, start, end, squares); break;
        STORAGES(SQUARED)
    }
}

template <typename S>
__device__ __forceinline__ void scale_unit(const Array &array, const u64 start, const u64 end, const double scale) {
    typedef typename S::Computed A;
    for (u64 i = start + threadIdx.x; i < end; i += blockDim.x) {
        typename S::Stored *const x = place<typename S::Stored>(array, i);
        *x = S::store(S::load(*x) * A(scale));
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
        square_blocks_of(parameter, start, end, of_parameter);
        square_blocks_of(gradient, start, end, of_gradient);
        const double size = sqrt(combine(of_parameter, blocks)), norm = sqrt(combine(of_gradient, blocks));
        // NaN stays.
        const double limit = a.clipping * (a.eps < size ? size : size == size ? a.eps : size);
        // Not `norm > limit`: a unit of a NaN norm is NaN everywhere, not unclipped.
        if (norm <= limit) continue;
        const double scale = limit / norm;
        switch (gradient.storage) {
#define SCALED_UNIT(S) \
    case STORAGE_##S: scale_unit<S>(gradient, start, end, scale); break;
            STORAGES(SCALED_UNIT)
        }
    }
}
