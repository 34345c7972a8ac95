// What all kernels share: the names of types, and how numbers are stored.
//
// Every operation rounds once and nothing is contracted (--fmad=false, no flush to zero), so that the bits are the CPU's.

typedef unsigned long long u64;
typedef long long i64;

constexpr unsigned WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;
// Terms in a block of the summation tree, and accumulators in it; the elements that a block of threads takes at a time.
constexpr u64 BLOCK = 4096;
constexpr u64 LANES = 64;

// `count` neighbours that are read or written at once, 16 bytes at a time.
template <typename T, unsigned count> struct alignas(sizeof(T) * count < 16 ? sizeof(T) * count : 16) Pack {
    T at[count];
};

__device__ __forceinline__ bool aligned(const void *pointer) { return reinterpret_cast<u64>(pointer) % 16 == 0; }

// Whether this block of threads is the last of the grid to come here. What the others have written before is visible
// to it. The counter is left at 0, for the next launch.
__device__ __forceinline__ bool last_block(unsigned *ticket, u64 blocks) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(ticket, 1u) == blocks - 1;
        if (last) *ticket = 0;
    }
    __syncthreads();
    if (last) __threadfence();
    return last;
}

// The largest finite number of a type.
template <typename A> __device__ __forceinline__ A largest();
template <> __device__ __forceinline__ float largest<float>() { return 3.402823466e+38f; }
template <> __device__ __forceinline__ double largest<double>() { return 1.7976931348623157e+308; }
// 2^power for power from -1074 to 1023.
__device__ __forceinline__ double two_to(const int power) {
    return __longlong_as_double(power < -1022 ? 1ll << (power + 1074) : i64(power + 1023) << 52);
}

// The exponent of a finite x > 0: that of the largest power of two that is not above it.
__device__ __forceinline__ int exponent(const double x) {
    const bool small = x < two_to(-1022);
    return static_cast<int>(__double_as_longlong(small ? x * two_to(54) : x) >> 52) - (small ? 1077 : 1023);
}

// x * 2^power, rounded once, as on the host.
__device__ __forceinline__ double times_two_to(const double x, const int power) {
    if (power > 1023) return x * two_to(1023) * two_to(power - 1023 < 1023 ? power - 1023 : 1023);
    if (power >= -1074) return x * two_to(power);
    return x * two_to(-512) * two_to(power + 512 > -1074 ? power + 512 : -1074);
}

// base^t by repeated squaring, as on the host.
__device__ __forceinline__ double power(double base, u64 t) {
    double result = 1.0;
    for (; t > 0; t >>= 1) {
        if (t & 1) result *= base;
        base *= base;
    }
    return result;
}

// base^exponent for exponent >= 0, as on the host: by square roots, a bit of the exponent each.
__device__ __forceinline__ double raised(const double base, const double exponent) {
    const double most = 9007199254740992.0;
    const u64 whole = exponent < most ? u64(exponent) : u64(most);
    double result = power(base, whole), root = base, rest = exponent < most ? exponent - double(whole) : 0.0;
    while (rest > 0.0) {
        root = sqrt(root);
        rest += rest;
        if (rest >= 1.0) {
            result *= root;
            rest -= 1.0;
        }
    }
    return result;
}

// The product over i = 1, ..., t of beta * (1 - q^i / 2), as on the host: 0 once 1 minus it is 1.
__device__ __forceinline__ double warming_product(const double beta, const double q, const u64 t) {
    const double nothing = 1.0 / 18014398509481984.0;
    double result = 1.0, past = 1.0;
    for (u64 i = 0; i < t; ++i) {
        past *= q;
        if (past < nothing) return result * power(beta, t - i);
        result *= beta * (1.0 - 0.5 * past);
        if (result < nothing) return 0.0;
    }
    return result;
}

// The product of a number over all updates of a parameter, as on the host: what it was in the first `constant` updates,
// below 0 if that is not known, and the product over the others.
struct Past {
    double base;
    u64 constant;
    double rest;
};

// How far a parameter is with its next update.
struct Progress {
    u64 t;
    bool current; // whether the present number counts as that of all updates
    Past past[3];

    __device__ __forceinline__ double product(const unsigned k, const double value) const {
        if (current || past[k].constant == t) return power(value, t);
        return power(past[k].base, past[k].constant) * past[k].rest;
    }

    // q is base^decay, beta product i, decay product j.
    __device__ __forceinline__ double warming_product(const unsigned i, const double beta, const unsigned j, const double q,
                                                      const double base) const {
        if (past[i].constant == t && past[j].constant == t) return ::warming_product(beta, q, t);
        const double warmed = ::warming_product(1.0, raised(base, past[j].base), past[j].constant) * past[j].rest;
        return power(past[i].base, past[i].constant) * past[i].rest * warmed;
    }
};
