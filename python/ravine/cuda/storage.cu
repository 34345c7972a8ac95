// What an array may hold, and where its elements are.

struct F64 {
    typedef double Stored;
    typedef double Computed;
    static __device__ __forceinline__ double load(const double x) { return x; }
    static __device__ __forceinline__ double store(const double x) { return x; }
};

struct F32 {
    typedef float Stored;
    typedef float Computed;
    static __device__ __forceinline__ float load(const float x) { return x; }
    static __device__ __forceinline__ float store(const float x) { return x; }
};

// IEEE 754 binary16, by integers: the vendor's header is not everywhere where a kernel is compiled.
struct F16 {
    typedef unsigned short Stored;
    typedef float Computed;

    static __device__ __forceinline__ float load(const unsigned short bits) {
        const unsigned magnitude = (bits & 0x7fffu) << 13, sign = (bits & 0x8000u) << 16;
        // Multiplying by 2^112 moves the exponent's bias, and makes subnormals normal, exactly.
        const unsigned scaled = __float_as_uint(__uint_as_float(magnitude) * __uint_as_float(0x77800000u));
        return __uint_as_float(sign | ((bits & 0x7c00u) == 0x7c00u ? magnitude | 0x7f800000u : scaled));
    }

    // Ties to even.
    static __device__ __forceinline__ unsigned short store(const float x) {
        const unsigned bits = __float_as_uint(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
        if (magnitude > 0x7f800000u) return static_cast<unsigned short>(sign | 0x7e00u);
        if (magnitude >= 0x477ff000u) return static_cast<unsigned short>(sign | 0x7c00u);
        // Below 2^-14 the spacing is 2^-24: adding 2^-1 rounds to it.
        const unsigned tiny = __float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000u;
        const unsigned normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
        return static_cast<unsigned short>(sign | (magnitude < 113u << 23 ? tiny : normal));
    }
};

// bfloat16, the upper half of binary32.
struct BF16 {
    typedef unsigned short Stored;
    typedef float Computed;
    static __device__ __forceinline__ float load(const unsigned short bits) { return __uint_as_float(unsigned(bits) << 16); }

    // Ties to even.
    static __device__ __forceinline__ unsigned short store(const float x) {
        const unsigned bits = __float_as_uint(x);
        const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
        return static_cast<unsigned short>(nan ? bits >> 16 | 0x40u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
    }
};

// The same, rounded at random when it is stored (compact.cu).
struct BF16_RANDOM {
    typedef unsigned short Stored;
    typedef float Computed;
    static __device__ __forceinline__ float load(const unsigned short bits) { return BF16::load(bits); }
};

// A bfloat16 parameter that is the upper half of a float32 number; what remains of that is in another array.
struct SPLIT {
    typedef unsigned short Stored;
    typedef float Computed;
    static __device__ __forceinline__ float load(const unsigned short bits) { return BF16::load(bits); }

    // Ties away from 0.
    static __device__ __forceinline__ unsigned short store(const float x) {
        const unsigned bits = __float_as_uint(x);
        return static_cast<unsigned short>(is_nan(bits) ? bits >> 16 | 0x40u : (bits + 0x8000u) >> 16);
    }

    static __device__ __forceinline__ short remainder(const float x) {
        const unsigned bits = __float_as_uint(x);
        return static_cast<short>(is_nan(bits) ? 0u : bits & 0xffffu);
    }

    // Where the upper half was changed, and there is no such number: that half alone.
    static __device__ __forceinline__ float joined(const unsigned short upper, const short lower) {
        const unsigned bits = unsigned(upper) << 16, whole = bits + static_cast<unsigned>(int(lower));
        return __uint_as_float(is_nan(whole) ? bits : whole);
    }

  private:
    static __device__ __forceinline__ bool is_nan(const unsigned bits) { return (bits & 0x7fffffffu) > 0x7f800000u; }
};

// As the host numbers them; those between are of states.
enum Storage : u64 { STORAGE_F64, STORAGE_F32, STORAGE_F16, STORAGE_BF16, STORAGE_SPLIT = 7, STORAGE_BF16_RANDOM };

constexpr unsigned MAX_AXES = 8;

// An array, its elements in C order. All fields have 8 bytes, as in every struct that the host fills in.
struct Array {
    char *data; // null: there is none
    u64 length;
    u64 first;   // its first block in the list of the blocks of all arrays
    u64 storage; // a Storage
    u64 axes;    // 0: one element after the other
    i64 lengths[MAX_AXES];
    i64 strides[MAX_AXES]; // in bytes
};

template <typename T> __device__ __forceinline__ T *place(const Array &array, u64 i) {
    if (array.axes == 0) return reinterpret_cast<T *>(array.data) + i;
    i64 offset = 0;
    for (unsigned axis = static_cast<unsigned>(array.axes); axis-- > 0;) {
        const u64 length = static_cast<u64>(array.lengths[axis]);
        offset += static_cast<i64>(i % length) * array.strides[axis];
        i /= length;
    }
    return reinterpret_cast<T *>(array.data + offset);
}

// The array that has this block. Empty ones have none: their first block is their successor's.
__device__ __forceinline__ u64 find(const Array *arrays, const u64 count, const u64 block) {
    u64 low = 0, high = count;
    while (high - low > 1) {
        const u64 middle = (low + high) / 2;
        if (arrays[middle].first <= block) low = middle;
        else high = middle;
    }
    return low;
}

// The elements of an array that a block holds.
struct Range {
    u64 start, end;
};

__device__ __forceinline__ Range elements(const Array &array, const u64 block) {
    const u64 start = (block - array.first) * BLOCK;
    return {start, start + BLOCK < array.length ? start + BLOCK : array.length};
}

// What `judge` says of the gradients of a step. Of a pair, the first is for f64 and the second for f32.
struct Verdict {
    double norm;
    double scale[2];
    i64 shift[2]; // they are multiplied by 2^-shift before the scale
    u64 scales;   // whether they are multiplied by both
    u64 skip;   // whether the step does not happen
    u64 steps;  // completed after this one
    double unscale; // what gradients are multiplied by first; 0: nothing
    u64 rescales; // whether their squares may have overflowed or underflowed: `rescale` says more
};

// A dynamic loss scale as it is now: DynamicLossScale in loss_scale.py.
struct LossScale {
    float value;
    unsigned unused;
    u64 good; // steps in a row since it was changed
};

// What gradients are multiplied by first, if they come multiplied by this and, unless it is null, a loss scale; 0: nothing.
__device__ __forceinline__ double unscale_of(const double grad_scale, const LossScale *const dynamic) {
    if (grad_scale == 0.0) return 0.0;
    return 1.0 / (dynamic ? double(dynamic->value) * grad_scale : grad_scale);
}
