// Batch norm and layer norm, forward and backward; REAL, the arrays' type, is float or double.
//
// The formulas, their types and their roundings are the table in the header of rust/norm/mod.rs, the sums are those of
// its trees: the bits are the CPU's. A channel of (outer, channels, inner) and a row of (rows, units) are both a
// sequence, summed by 64 lanes; the columns of (rows, channels) by 8 lanes. Whether one kernel makes all passes over a
// sequence, or one makes each, changes no bit.

constexpr unsigned THREADS = COMBINE_THREADS;
constexpr unsigned WARPS = THREADS / WARP;
// Accumulators in a block of rows.
constexpr unsigned ROW_LANES = 8;
// Elements in 16 bytes.
constexpr unsigned WIDTH = 16 / sizeof(REAL);

template <typename T> struct Vector {
    T *data;  // null: absent
    i64 step; // in elements; 0: one number for all
    __device__ T &at(const u64 i) const { return data[i64(i) * step]; }
    __device__ T at_or(const u64 i, const T absent) const { return data ? at(i) : absent; }
};

// A formula's coefficients for one channel, rounded.
struct alignas(16) Coefficients {
    REAL at[8];
};

struct NormArgs {
    const REAL *x, *dy;
    REAL *out;                             // y, dx
    Vector<const REAL> weight, bias;       // per channel; for layer norm, per unit
    Vector<REAL> running_mean, running_var;
    Vector<REAL> dweight, dbias;           // null: to `totals`
    Vector<double> mean, inv_std;          // per sequence
    double *totals;                        // dweight and dbias of all units where one number serves all
    double *sums;                          // work space: sums of blocks
    unsigned *tickets;                     // work space: zeros, which are zeros again afterwards
    Coefficients *coefficients;            // work space: per channel
    double eps, momentum;
    u64 training;                          // whether the statistics are x's own
    u64 relu;                              // whether y is cut off at 0
    u64 channels;                          // sequences, or columns
    u64 count;                             // elements of each of them
    u64 inner, stride;                     // a sequence has segments of `inner`, one every `stride`
    u64 span;                              // warps that share a sequence; or columns of a block of threads: 2^k
    u64 groups;                            // blocks of threads that share a sequence or column
    u64 elements, wide;                    // all there are; whether wide accesses are aligned
    u64 threads;                           // that work on a flat array; channels that are last divide their elements
    u64 jump_channels, jump_rest;          // from a thread's elements to its next ones: channels, and elements inside
};

__device__ __forceinline__ u64 divide(const u64 a, const u64 b) {
    // Several times as fast where it fits.
    return (a | b) >> 32 ? a / b : unsigned(a) / unsigned(b);
}

// ---------------------------------------------------------------------------------------------------------------------
// The formulas

struct Nothing {};

// (x - x̄)·s + b, with relu not below 0
struct Normalize {
    typedef Nothing PerUnit;
    REAL mean, scale, shift;
    bool relu;

    __device__ static Normalize of(const double mean, const double inv_std, const double weight, const double bias,
                                   const bool relu) {
        const REAL rounded = REAL(mean);
        const double scale = weight * inv_std;
        const double shift = bias + (double(rounded) - mean) * scale;
        return {rounded, REAL(scale), REAL(shift), relu};
    }
    __device__ static Normalize of(const Coefficients &c) { return {c.at[0], c.at[1], c.at[2], c.at[3] != REAL(0)}; }
    __device__ Coefficients coefficients() const { return {{mean, scale, shift, REAL(relu)}}; }

    __device__ static Nothing per_unit(const NormArgs &, const u64) { return {}; }
    __device__ REAL plain(const REAL x) const { return (x - mean) * scale + shift; }
    __device__ REAL at(const REAL (&v)[1], Nothing) const {
        const REAL y = plain(v[0]);
        return relu && y <= REAL(0) ? REAL(0) : y;
    }
    // What relu leaves of dy.
    __device__ REAL left(const REAL dy, const REAL x) const { return !relu || plain(x) > REAL(0) ? dy : REAL(0); }
};

// ((g - c) - (x - x̄)·q)·k, g = dy or what relu leaves of it
struct Differentiate {
    typedef Nothing PerUnit;
    REAL mean, centre, slope, scale;

    __device__ static Differentiate of(const double mean, const double inv_std, const double weight,
                                       const double (&sums)[2], const u64 count) {
        const REAL rounded = REAL(mean);
        const double slope = ((inv_std * inv_std) * sums[1]) / double(count);
        const double centre = sums[0] / double(count) + (double(rounded) - mean) * slope;
        return {rounded, REAL(centre), REAL(slope), REAL(weight * inv_std)};
    }
    __device__ static Differentiate of(const Coefficients &c) { return {c.at[0], c.at[1], c.at[2], c.at[3]}; }
    __device__ Coefficients coefficients() const { return {{mean, centre, slope, scale}}; }

    __device__ static Nothing per_unit(const NormArgs &, const u64) { return {}; }
    __device__ REAL at(const REAL (&v)[2], Nothing) const { return ((v[0] - centre) - (v[1] - mean) * slope) * scale; }
};

// g·k
struct Scale {
    REAL scale;

    __device__ static Scale of(const double inv_std, const double weight) { return {REAL(weight * inv_std)}; }
    __device__ static Scale of(const Coefficients &c) { return {c.at[0]}; }
    __device__ Coefficients coefficients() const { return {{scale, REAL(0), REAL(0), REAL(0)}}; }

    __device__ REAL at(const REAL (&v)[2], Nothing) const { return v[0] * scale; }
};

// The formula of what relu leaves of dy.
template <typename Formula> struct Rectified {
    typedef Nothing PerUnit;
    Formula formula;
    Normalize normalize;

    __device__ static Rectified of(const Coefficients &c) {
        return {Formula::of(c), {c.at[4], c.at[5], c.at[6], c.at[7] != REAL(0)}};
    }
    __device__ Coefficients coefficients() const {
        Coefficients c = formula.coefficients();
        const Coefficients y = normalize.coefficients();
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) c.at[4 + i] = y.at[i];
        return c;
    }

    __device__ static Nothing per_unit(const NormArgs &, const u64) { return {}; }
    __device__ REAL at(const REAL (&v)[2], Nothing) const {
        return formula.at({normalize.left(v[0], v[1]), v[1]}, Nothing());
    }
};

// ((x - x̄)·s + b)·α + β
struct LayerNormalize {
    struct PerUnit {
        REAL weight, bias;
    };
    Normalize normalize;

    __device__ static LayerNormalize of(const double mean, const double inv_std) {
        return {Normalize::of(mean, inv_std, 1.0, 0.0, false)};
    }
    __device__ static LayerNormalize of(const Coefficients &c) { return {Normalize::of(c)}; }
    __device__ Coefficients coefficients() const { return normalize.coefficients(); }

    // An absent bias is -0: adding it changes nothing, not even -0.
    __device__ static PerUnit per_unit(const NormArgs &a, const u64 unit) {
        return {a.weight.at_or(unit, REAL(1)), a.bias.at_or(unit, -REAL(0))};
    }
    __device__ REAL at(const REAL (&v)[1], const PerUnit &unit) const {
        return normalize.at(v, Nothing()) * unit.weight + unit.bias;
    }
};

// `Differentiate` of g = α·dy
struct LayerDifferentiate {
    typedef Nothing PerUnit;
    Differentiate differentiate;

    __device__ static LayerDifferentiate of(const double mean, const double inv_std, const double (&sums)[2],
                                            const u64 count) {
        return {Differentiate::of(mean, inv_std, 1.0, sums, count)};
    }
    __device__ static LayerDifferentiate of(const Coefficients &c) { return {Differentiate::of(c)}; }
    __device__ Coefficients coefficients() const { return differentiate.coefficients(); }

    __device__ static Nothing per_unit(const NormArgs &, const u64) { return {}; }
    __device__ REAL at(const REAL (&v)[3], Nothing) const {
        return differentiate.at({v[0] * v[1], v[2]}, Nothing());
    }
};

// x
struct Value {
    __device__ void of(const double (&x)[1], double (&terms)[1]) const { terms[0] = x[0]; }
};

// (x - μ)²
struct Square {
    double mean;
    __device__ void of(const double (&x)[1], double (&terms)[1]) const {
        const double d = x[0] - mean;
        terms[0] = d * d;
    }
};

// g, g·(x - μ), g = dy or what relu leaves of it
struct Products {
    double mean;
    Normalize normalize;
    __device__ void of(const double (&v)[2], double (&terms)[2]) const {
        terms[0] = double(normalize.left(REAL(v[0]), REAL(v[1])));
        terms[1] = terms[0] * (v[1] - mean);
    }
};

// α·dy, (α·dy)·(x - μ)
struct WeightedProducts {
    double mean;
    __device__ void of(const double (&v)[3], double (&terms)[2]) const {
        const double d = v[0] * v[1];
        terms[0] = d;
        terms[1] = d * (v[2] - mean);
    }
};

// dy, dy·((x - μ)·i)
struct NormalizedProducts {
    double mean, inv_std;
    __device__ void of(const double (&v)[2], double (&terms)[2]) const {
        terms[0] = v[0];
        terms[1] = v[0] * ((v[1] - mean) * inv_std);
    }
};

// 1 / √(σ² + ε)
__device__ __forceinline__ double inv_std(const double var, const double eps) { return 1.0 / sqrt(var + eps); }

// running <- (1 - momentum)·running + momentum·batch
__device__ __forceinline__ void track(REAL &running, const double batch, const double momentum) {
    running = REAL((1.0 - momentum) * double(running) + momentum * batch);
}

// ---------------------------------------------------------------------------------------------------------------------
// What the sums and formulas are of: `W` neighbours from place `at` on, the first of which is term `i` of its sequence

template <typename T, unsigned W> __device__ __forceinline__ void load(T (&to)[W], const T *from) {
    const Pack<T, W> pack = *reinterpret_cast<const Pack<T, W> *>(from);
#pragma unroll
    for (unsigned w = 0; w < W; ++w) to[w] = pack.at[w];
}

template <typename T, unsigned W> __device__ __forceinline__ void store(T *to, const T (&from)[W]) {
    Pack<T, W> pack;
#pragma unroll
    for (unsigned w = 0; w < W; ++w) pack.at[w] = from[w];
    *reinterpret_cast<Pack<T, W> *>(to) = pack;
}

// x
struct OfX {
    typedef REAL Element;
    static constexpr unsigned N = 1;
    template <unsigned W> __device__ static void get(const NormArgs &a, const u64 at, const u64, REAL (&v)[N][W]) {
        load(v[0], a.x + at);
    }
};

// dy, x
struct OfBoth {
    typedef REAL Element;
    static constexpr unsigned N = 2;
    template <unsigned W> __device__ static void get(const NormArgs &a, const u64 at, const u64, REAL (&v)[N][W]) {
        load(v[0], a.dy + at);
        load(v[1], a.x + at);
    }
};

// α, dy, x
struct OfWeighted {
    typedef REAL Element;
    static constexpr unsigned N = 3;
    template <unsigned W> __device__ static void get(const NormArgs &a, const u64 at, const u64 i, REAL (&v)[N][W]) {
#pragma unroll
        for (unsigned w = 0; w < W; ++w) v[0][w] = a.weight.at_or(i + w, REAL(1));
        load(v[1], a.dy + at);
        load(v[2], a.x + at);
    }
};

// dα or dβ of the units
struct OfTotals {
    typedef double Element;
    static constexpr unsigned N = 1;
    template <unsigned W> __device__ static void get(const NormArgs &a, const u64 at, const u64, double (&v)[N][W]) {
        load(v[0], a.totals + at);
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// Sequences: a warp reads the terms of a block, each thread those of two lanes

// Where a term lies: the place in memory, and how far inside its segment that is.
struct Place {
    u64 at, inside;
};

// SEGMENTED: a sequence may have several segments. PAIRED: a thread has lanes 2t and 2t + 1, which are neighbours in
// memory; else t and t + 32.
template <typename Source, bool SEGMENTED, bool PAIRED> struct Reader {
    typedef typename Source::Element Element;
    static constexpr unsigned N = Source::N;
    // Rows of lanes that are loaded at a time: so many loads are in flight.
    static constexpr unsigned ROWS = (N == 1 ? 16 : 8) * 4 / sizeof(Element);

    const NormArgs &a;
    u64 first, count;                  // place of the sequence, terms
    u64 jump, rest;                    // a row of lanes further: in memory, and inside a segment
    u64 held = ~0ull;                  // the first term of those in `values`
    Element values[ROWS][N][2];

    __device__ Reader(const NormArgs &a, const u64 sequence, const bool present)
        : a(a), first(sequence * a.inner), count(present ? a.count : 0) {
        const u64 segments = a.inner > LANES || a.inner == 0 ? 0 : divide(LANES, a.inner);
        rest = LANES - segments * a.inner;
        jump = segments * a.stride + rest;
    }

    __device__ static unsigned lane(const unsigned half) {
        return PAIRED ? 2 * (threadIdx.x % WARP) + half : threadIdx.x % WARP + half * WARP;
    }

    __device__ Place place(const u64 i) const {
        if (!SEGMENTED) return {first + i, i};
        const u64 segment = divide(i, a.inner);
        const u64 inside = i - segment * a.inner;
        return {first + segment * a.stride + inside, inside};
    }

    __device__ void advance(Place (&places)[2]) const {
#pragma unroll
        for (unsigned half = 0; half < (PAIRED ? 1 : 2); ++half) {
            Place &place = places[half];
            if (!SEGMENTED) {
                place.at += LANES;
                continue;
            }
            place.at += jump;
            place.inside += rest;
            if (place.inside >= a.inner) {
                place.inside -= a.inner;
                place.at += a.stride - a.inner;
            }
        }
    }

    // Loads ROWS rows from term `i` on, and goes on to the next. A short sequence, all of which was loaded in the last
    // pass, is still here.
    template <bool WHOLE> __device__ void fetch(Place (&places)[2], const u64 i, const u64 end) {
        if (held == i) return;
        held = i;
#pragma unroll
        for (unsigned row = 0; row < ROWS; ++row) {
#pragma unroll
            for (unsigned half = 0; half < 2; half += PAIRED ? 2 : 1) {
                const u64 term = i + row * LANES + lane(half);
                Element v[N][PAIRED ? 2 : 1] = {};
                if (WHOLE || term < end) Source::get(a, places[half].at, term, v);
#pragma unroll
                for (unsigned n = 0; n < N; ++n) {
                    values[row][n][half] = v[n][0];
                    if (PAIRED) values[row][n][1] = v[n][PAIRED ? 1 : 0];
                }
            }
            advance(places);
        }
    }

    template <bool WHOLE, unsigned K, typename Terms>
    __device__ void add_rows(double (&lanes)[K][2], Place (&places)[2], const u64 i, const u64 end,
                             const Terms &terms) {
        fetch<WHOLE>(places, i, end);
#pragma unroll
        for (unsigned row = 0; row < ROWS; ++row) {
#pragma unroll
            for (unsigned half = 0; half < 2; ++half) {
                double v[N], t[K];
#pragma unroll
                for (unsigned n = 0; n < N; ++n) v[n] = double(values[row][n][half]);
                terms.of(v, t);
#pragma unroll
                for (unsigned k = 0; k < K; ++k) {
                    if (WHOLE || i + row * LANES + lane(half) < end) lanes[k][half] += t[k];
                }
            }
        }
    }

    // K sums of a block; valid in the warp's first thread.
    template <unsigned K, typename Terms>
    __device__ void block_sums(const u64 block, const Terms &terms, double (&sums)[K]) {
        double lanes[K][2] = {};
        u64 i = block * BLOCK;
        if (i < count) {
            const u64 end = i + BLOCK < count ? i + BLOCK : count;
            Place places[2] = {place(i + lane(0)), place(i + lane(1))};
            for (; i + ROWS * LANES <= end; i += ROWS * LANES) add_rows<true>(lanes, places, i, end, terms);
            if (i < end) add_rows<false>(lanes, places, i, end, terms);
        }
#pragma unroll
        for (unsigned k = 0; k < K; ++k) {
            sums[k] = PAIRED ? fold_lanes(lanes[k][0], lanes[k][1]) : fold_halves(lanes[k][0], lanes[k][1]);
        }
    }

    // The formula for every element of a block.
    template <typename Formula> __device__ void apply(const u64 block, const Formula &formula) {
        // Neighbouring rows whose loads come before the stores.
        constexpr unsigned SOME = 2;
        u64 i = block * BLOCK;
        if (i >= count) return;
        const u64 end = i + BLOCK < count ? i + BLOCK : count;
        Place places[2] = {place(i + lane(0)), place(i + lane(1))};
        for (; i < end; i += ROWS * LANES) {
            Place to[2] = {places[0], places[1]};
            if (i + ROWS * LANES <= end) {
                fetch<true>(places, i, end);
            } else {
                fetch<false>(places, i, end);
            }
#pragma unroll
            for (unsigned row = 0; row < ROWS; row += SOME) {
                typename Formula::PerUnit units[SOME][2];
#pragma unroll
                for (unsigned some = 0; some < SOME; ++some) {
#pragma unroll
                    for (unsigned half = 0; half < 2; ++half) {
                        const u64 term = i + (row + some) * LANES + lane(half);
                        units[some][half] = Formula::per_unit(a, term < end ? term : 0);
                    }
                }
#pragma unroll
                for (unsigned some = 0; some < SOME; ++some) {
                    REAL y[2];
#pragma unroll
                    for (unsigned half = 0; half < 2; ++half) {
                        REAL v[N];
#pragma unroll
                        for (unsigned n = 0; n < N; ++n) v[n] = values[row + some][n][half];
                        y[half] = formula.at(v, units[some][half]);
                    }
                    const u64 term = i + (row + some) * LANES;
                    if (PAIRED) {
                        if (term + lane(0) < end) store(a.out + to[0].at, y);
                    } else {
                        if (term + lane(0) < end) a.out[to[0].at] = y[0];
                        if (term + lane(1) < end) a.out[to[1].at] = y[1];
                    }
                    advance(to);
                }
            }
        }
    }
};

// Which block of which sequence a warp has. `span` warps have neighbouring blocks; if there are more blocks than warps
// in a block of threads, then `groups` blocks of threads share the sequence.
struct Task {
    u64 sequence, group, block;
    bool present, first; // whether there is such a sequence; whether this thread speaks for it

    __device__ explicit Task(const NormArgs &a) {
        const unsigned warp = threadIdx.x / WARP, span = unsigned(a.span);
        if (a.groups > 1) {
            sequence = divide(blockIdx.x, a.groups);
            group = blockIdx.x - sequence * a.groups;
        } else {
            sequence = u64(blockIdx.x) * (WARPS / span) + warp / span;
            group = 0;
        }
        block = group * WARPS + warp % span;
        present = sequence < a.channels;
        first = present && threadIdx.x % (span * WARP) == 0;
    }
};

// K sums of the blocks that `span` warps have, valid in all their threads. Called by a whole block of threads.
template <unsigned K, typename R, typename Terms>
__device__ __forceinline__ void span_sums(R &reader, const Task &task, const Terms &terms, double (&sums)[K]) {
    __shared__ double of_warps[K][WARPS];
    const unsigned warp = threadIdx.x / WARP, span = unsigned(reader.a.span);
    reader.block_sums(task.block, terms, sums);
    if (span == 1) {
#pragma unroll
        for (unsigned k = 0; k < K; ++k) sums[k] = __shfl_sync(ALL_LANES, sums[k], 0);
        return;
    }
    // The last sums have been read.
    __syncthreads();
    if (threadIdx.x % WARP == 0) {
#pragma unroll
        for (unsigned k = 0; k < K; ++k) of_warps[k][warp] = sums[k];
    }
    __syncthreads();
#pragma unroll
    for (unsigned k = 0; k < K; ++k) sums[k] = combine_run(&of_warps[k][warp / span * span], 1, span);
}

// Sums over sequences, and what follows from them.
template <typename Job, bool PAIRED> __device__ __forceinline__ void sum_sequences(const NormArgs &a) {
    const Task task(a);
    Reader<typename Job::Source, Job::SEGMENTED, PAIRED> reader(a, task.sequence, task.present);
    double sums[Job::K];
    span_sums(reader, task, Job::terms(a, task.present ? task.sequence : 0), sums);
    if (a.groups > 1) {
        const u64 at = task.sequence * a.groups, size = a.channels * a.groups;
        if (threadIdx.x == 0) {
#pragma unroll
            for (unsigned k = 0; k < Job::K; ++k) a.sums[k * size + at + task.group] = sums[k];
        }
        if (!last_block(a.tickets + task.sequence, a.groups)) return;
#pragma unroll
        for (unsigned k = 0; k < Job::K; ++k) sums[k] = combine(a.sums + k * size + at, a.groups);
    }
    if (task.first) Job::finish(a, task.sequence, sums);
}

// ---------------------------------------------------------------------------------------------------------------------
// Columns of (rows, channels): a thread has one of the 8 lanes of one channel in one block of rows

// A block of threads has `span` channels, and 32 / span neighbouring blocks of rows.
template <typename Job> __device__ __forceinline__ void sum_columns(const NormArgs &a) {
    typedef typename Job::Source Source;
    constexpr unsigned K = Job::K, N = Source::N, ROWS = (N == 1 ? 16 : 8) * 4 / sizeof(REAL);
    __shared__ double lanes[K][THREADS];
    const unsigned span = unsigned(a.span), t = threadIdx.x;
    const u64 tile = divide(blockIdx.x, a.groups), group = blockIdx.x - tile * a.groups;
    const u64 channel = tile * span + t % span, block = group * (WARP / span) + t / (ROW_LANES * span);
    const bool present = channel < a.channels;
    double sums[K] = {};
    u64 row = block * BLOCK;
    if (present && row < a.count) {
        const u64 end = row + BLOCK < a.count ? row + BLOCK : a.count, step = ROW_LANES * a.channels;
        const auto terms = Job::terms(a, channel);
        row += t / span % ROW_LANES;
        u64 at = row * a.channels + channel;
        for (; row < end; row += ROWS * ROW_LANES) {
            REAL values[ROWS][N][1];
            const bool whole = row + (ROWS - 1) * ROW_LANES < end;
#pragma unroll
            for (unsigned i = 0; i < ROWS; ++i) {
#pragma unroll
                for (unsigned n = 0; n < N; ++n) values[i][n][0] = REAL(0);
                if (whole || row + i * ROW_LANES < end) Source::get(a, at + i * step, 0, values[i]);
            }
            at += ROWS * step;
#pragma unroll
            for (unsigned i = 0; i < ROWS; ++i) {
                if (!whole && row + i * ROW_LANES >= end) break;
                double v[N], of_row[K];
#pragma unroll
                for (unsigned n = 0; n < N; ++n) v[n] = double(values[i][n][0]);
                Job::of_row(a, terms, row + i * ROW_LANES).of(v, of_row);
#pragma unroll
                for (unsigned k = 0; k < K; ++k) sums[k] += of_row[k];
            }
        }
    }
#pragma unroll
    for (unsigned k = 0; k < K; ++k) lanes[k][t] = sums[k];
    // The lanes by halves, then the blocks by adjacent pairs.
    const auto fold = [&](const unsigned distance, const bool mine) {
        __syncthreads();
        if (mine) {
#pragma unroll
            for (unsigned k = 0; k < K; ++k) lanes[k][t] += lanes[k][t + distance];
        }
    };
    for (unsigned half = ROW_LANES / 2; half > 0; half /= 2) fold(half * span, t / span % ROW_LANES < half);
    for (unsigned distance = ROW_LANES * span; distance < THREADS; distance *= 2) {
        fold(distance, t % (2 * distance) < span);
    }
    const bool speaks = present && t < span;
#pragma unroll
    for (unsigned k = 0; k < K; ++k) sums[k] = lanes[k][t];
    if (a.groups > 1) {
        double *const of_groups = a.sums + tile * a.groups * K * span;
        if (t < span) {
#pragma unroll
            for (unsigned k = 0; k < K; ++k) of_groups[(group * K + k) * span + t] = sums[k];
        }
        if (!last_block(a.tickets + tile, a.groups)) return;
        combine_columns(of_groups, a.groups, K * span, K * span);
        if (speaks) {
#pragma unroll
            for (unsigned k = 0; k < K; ++k) sums[k] = of_groups[k * span + t];
        }
    }
    if (speaks) Job::finish(a, channel, sums);
}

// ---------------------------------------------------------------------------------------------------------------------
// The formulas over flat arrays: a thread has every so many elements, WIDTH at a time where they are aligned

// W elements of one channel.
template <typename Source, typename Formula, unsigned W>
__device__ __forceinline__ void put(const NormArgs &a, const Formula &formula, const u64 at, const u64 unit,
                                    const REAL (&v)[Source::N][W]) {
    REAL y[W];
#pragma unroll
    for (unsigned w = 0; w < W; ++w) {
        REAL x[Source::N];
#pragma unroll
        for (unsigned n = 0; n < Source::N; ++n) x[n] = v[n][w];
        y[w] = formula.at(x, Formula::per_unit(a, unit + w));
    }
    store(a.out + at, y);
}

template <typename Source, typename Formula>
__device__ __forceinline__ void put_one(const NormArgs &a, const u64 at, const u64 channel, const u64 unit) {
    REAL v[Source::N][1];
    Source::get(a, at, unit, v);
    put<Source>(a, Formula::of(a.coefficients[channel]), at, unit, v);
}

// (outer, channels, inner)
template <typename Source, typename Formula, unsigned W>
__device__ __forceinline__ void apply_inside(const NormArgs &a) {
    constexpr unsigned SOME = Source::N == 1 ? 4 : 2;
    const u64 thread = u64(blockIdx.x) * THREADS + threadIdx.x, step = a.threads * W, whole = a.elements / W * W;
    const auto channel_of = [&](const u64 at, u64 &inside) {
        const u64 segment = divide(at, a.inner);
        inside = at - segment * a.inner;
        return segment - divide(segment, a.channels) * a.channels;
    };
    u64 at = thread * W, inside, channel = channel_of(at, inside);
    if (thread < a.elements - whole) {
        u64 unit;
        const u64 last = channel_of(whole + thread, unit);
        put_one<Source, Formula>(a, whole + thread, last, unit);
    }
    while (at < whole) {
        u64 channels[SOME], units[SOME];
        REAL v[SOME][Source::N][W];
#pragma unroll
        for (unsigned some = 0; some < SOME; ++some) {
            channels[some] = channel;
            units[some] = inside;
            if (at + some * step < whole && (W == 1 || inside + W <= a.inner)) {
                Source::get(a, at + some * step, inside, v[some]);
            }
            channel += a.jump_channels;
            inside += a.jump_rest;
            if (inside >= a.inner) {
                inside -= a.inner;
                ++channel;
            }
            if (channel >= a.channels) channel -= a.channels;
        }
#pragma unroll
        for (unsigned some = 0; some < SOME; ++some, at += step) {
            if (at >= whole) break;
            u64 of = channels[some], unit = units[some];
            if (W == 1 || unit + W <= a.inner) {
                put<Source>(a, Formula::of(a.coefficients[of]), at, unit, v[some]);
                continue;
            }
            // These neighbours lie in several channels.
            for (unsigned w = 0; w < W; ++w) {
                put_one<Source, Formula>(a, at + w, of, unit);
                if (++unit == a.inner) {
                    unit = 0;
                    if (++of == a.channels) of = 0;
                }
            }
        }
    }
}

// (rows, channels): a thread's elements have always the same channels.
template <typename Source, typename Formula, unsigned W>
__device__ __forceinline__ void apply_last(const NormArgs &a) {
    constexpr unsigned SOME = Source::N == 1 ? 4 : 2;
    const u64 thread = u64(blockIdx.x) * THREADS + threadIdx.x, step = a.threads * W, whole = a.elements / W * W;
    const auto channel_of = [&](const u64 at) { return at - divide(at, a.channels) * a.channels; };
    if (thread < a.elements - whole) {
        put_one<Source, Formula>(a, whole + thread, channel_of(whole + thread), 0);
    }
    u64 at = thread * W;
    if (thread >= a.threads || at >= whole) return;
    Formula formulas[W];
    u64 channel = channel_of(at);
#pragma unroll
    for (unsigned w = 0; w < W; ++w) {
        formulas[w] = Formula::of(a.coefficients[channel]);
        if (++channel == a.channels) channel = 0;
    }
    while (at < whole) {
        REAL v[SOME][Source::N][W];
#pragma unroll
        for (unsigned some = 0; some < SOME; ++some) {
            if (at + some * step < whole) Source::get(a, at + some * step, 0, v[some]);
        }
#pragma unroll
        for (unsigned some = 0; some < SOME; ++some, at += step) {
            if (at >= whole) break;
            REAL y[W];
#pragma unroll
            for (unsigned w = 0; w < W; ++w) {
                REAL x[Source::N];
#pragma unroll
                for (unsigned n = 0; n < Source::N; ++n) x[n] = v[some][n][w];
                y[w] = formulas[w].at(x, Nothing());
            }
            store(a.out + at, y);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// What is summed, and what follows for a channel

struct Job {
    static constexpr bool SEGMENTED = true;
    // The terms are the same for every row.
    template <typename Terms> __device__ static Terms of_row(const NormArgs &, const Terms &terms, const u64) {
        return terms;
    }
};

struct Mean : Job {
    typedef OfX Source;
    static constexpr unsigned K = 1;
    __device__ static Value terms(const NormArgs &, const u64) { return {}; }
    __device__ static void finish(const NormArgs &a, const u64 c, const double (&sums)[1]) {
        a.mean.at(c) = sums[0] / double(a.count);
    }
};

// Keeps the statistics of a channel.
__device__ __forceinline__ void keep(const NormArgs &a, const u64 c, const double mean, const double var) {
    a.mean.at(c) = mean;
    a.inv_std.at(c) = inv_std(var, a.eps);
    if (!a.running_mean.data) return;
    const double count = double(a.count);
    track(a.running_mean.at(c), mean, a.momentum);
    track(a.running_var.at(c), var * (count / (count - 1.0)), a.momentum);
}

__device__ __forceinline__ Normalize normalize(const NormArgs &a, const u64 c, const double mean,
                                               const double inv_std) {
    return Normalize::of(mean, inv_std, double(a.weight.at_or(c, REAL(1))), double(a.bias.at_or(c, REAL(0))), a.relu);
}

struct Variance : Job {
    typedef OfX Source;
    static constexpr unsigned K = 1;
    __device__ static Square terms(const NormArgs &a, const u64 c) { return {a.mean.at(c)}; }
    __device__ static void finish(const NormArgs &a, const u64 c, const double (&sums)[1]) {
        const double mean = a.mean.at(c), var = sums[0] / double(a.count);
        keep(a, c, mean, var);
        a.coefficients[c] = normalize(a, c, mean, inv_std(var, a.eps)).coefficients();
    }
};

struct LayerVariance : Variance {
    static constexpr bool SEGMENTED = false;
    __device__ static void finish(const NormArgs &a, const u64 row, const double (&sums)[1]) {
        const double mean = a.mean.at(row), var = sums[0] / double(a.count);
        keep(a, row, mean, var);
        a.coefficients[row] = LayerNormalize::of(mean, inv_std(var, a.eps)).coefficients();
    }
};

__device__ __forceinline__ void give(const NormArgs &a, const u64 c, const double weight, const double bias) {
    a.dweight.at(c) = REAL(weight);
    a.dbias.at(c) = REAL(bias);
}

struct Gradients : Job {
    typedef OfBoth Source;
    static constexpr unsigned K = 2;
    __device__ static Products terms(const NormArgs &a, const u64 c) {
        return {a.mean.at(c), normalize(a, c, a.mean.at(c), a.inv_std.at(c))};
    }
    __device__ static void finish(const NormArgs &a, const u64 c, const double (&sums)[2]) {
        const double mean = a.mean.at(c), inv_std = a.inv_std.at(c), weight = double(a.weight.at_or(c, REAL(1)));
        const Normalize y = normalize(a, c, mean, inv_std);
        give(a, c, inv_std * sums[1], sums[0]);
        if (a.training) {
            const Differentiate formula = Differentiate::of(mean, inv_std, weight, sums, a.count);
            a.coefficients[c] = Rectified<Differentiate>{formula, y}.coefficients();
        } else {
            a.coefficients[c] = Rectified<Scale>{Scale::of(inv_std, weight), y}.coefficients();
        }
    }
};

struct LayerGradients : Job {
    static constexpr bool SEGMENTED = false;
    typedef OfWeighted Source;
    static constexpr unsigned K = 2;
    __device__ static WeightedProducts terms(const NormArgs &a, const u64 row) { return {a.mean.at(row)}; }
    __device__ static void finish(const NormArgs &a, const u64 row, const double (&sums)[2]) {
        a.coefficients[row] = LayerDifferentiate::of(a.mean.at(row), a.inv_std.at(row), sums, a.count).coefficients();
    }
};

// dα and dβ of layer norm: the columns are the units.
struct Units : Job {
    typedef OfBoth Source;
    static constexpr unsigned K = 2;
    __device__ static Nothing terms(const NormArgs &, const u64) { return {}; }
    __device__ static NormalizedProducts of_row(const NormArgs &a, Nothing, const u64 row) {
        return {a.mean.at(row), a.inv_std.at(row)};
    }
    __device__ static void finish(const NormArgs &a, const u64 unit, const double (&sums)[2]) {
        if (a.dweight.data) a.dweight.at(unit) = REAL(sums[1]);
        if (a.dbias.data) a.dbias.at(unit) = REAL(sums[0]);
        if (!a.dweight.data) a.totals[unit] = sums[1];
        if (!a.dbias.data) a.totals[a.channels + unit] = sums[0];
    }
};

// dα and dβ that all units share.
struct Shared : Job {
    static constexpr bool SEGMENTED = false;
    typedef OfTotals Source;
    static constexpr unsigned K = 1;
    __device__ static Value terms(const NormArgs &, const u64) { return {}; }
    __device__ static void finish(const NormArgs &a, const u64 which, const double (&sums)[1]) {
        const Vector<REAL> &to = which == 0 ? a.dweight : a.dbias;
        if (to.data) to.at(0) = REAL(sums[0]);
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// All passes over a sequence in one kernel

template <bool PAIRED> __device__ __forceinline__ void batch_forward_of(const NormArgs &a) {
    const Task task(a);
    Reader<OfX, true, PAIRED> reader(a, task.sequence, task.present);
    double sums[1];
    span_sums(reader, task, Value(), sums);
    const double mean = sums[0] / double(a.count);
    span_sums(reader, task, Square{mean}, sums);
    const double var = sums[0] / double(a.count);
    if (!task.present) return;
    if (task.first) keep(a, task.sequence, mean, var);
    reader.apply(task.block, normalize(a, task.sequence, mean, inv_std(var, a.eps)));
}

template <bool PAIRED> __device__ __forceinline__ void batch_backward_of(const NormArgs &a) {
    const Task task(a);
    const u64 c = task.present ? task.sequence : 0;
    const double mean = a.mean.at(c), inv_std = a.inv_std.at(c), weight = double(a.weight.at_or(c, REAL(1)));
    Reader<OfBoth, true, PAIRED> reader(a, c, task.present);
    double sums[2];
    const Normalize y = normalize(a, c, mean, inv_std);
    span_sums(reader, task, Products{mean, y}, sums);
    if (!task.present) return;
    if (task.first) give(a, c, inv_std * sums[1], sums[0]);
    if (a.training) {
        const Differentiate formula = Differentiate::of(mean, inv_std, weight, sums, a.count);
        reader.apply(task.block, Rectified<Differentiate>{formula, y});
    } else {
        reader.apply(task.block, Rectified<Scale>{Scale::of(inv_std, weight), y});
    }
}

template <bool PAIRED> __device__ __forceinline__ void layer_forward_of(const NormArgs &a) {
    const Task task(a);
    Reader<OfX, false, PAIRED> reader(a, task.sequence, task.present);
    double sums[1];
    span_sums(reader, task, Value(), sums);
    const double mean = sums[0] / double(a.count);
    span_sums(reader, task, Square{mean}, sums);
    const double var = sums[0] / double(a.count);
    if (!task.present) return;
    if (task.first) keep(a, task.sequence, mean, var);
    reader.apply(task.block, LayerNormalize::of(mean, inv_std(var, a.eps)));
}

template <bool PAIRED> __device__ __forceinline__ void layer_backward_of(const NormArgs &a) {
    const Task task(a);
    const u64 row = task.present ? task.sequence : 0;
    const double mean = a.mean.at(row);
    Reader<OfWeighted, false, PAIRED> reader(a, row, task.present);
    double sums[2];
    span_sums(reader, task, WeightedProducts{mean}, sums);
    if (task.present) reader.apply(task.block, LayerDifferentiate::of(mean, a.inv_std.at(row), sums, a.count));
}

// ---------------------------------------------------------------------------------------------------------------------
// The kernels

template <typename Job> __device__ __forceinline__ void sum_sequences(const NormArgs &a) {
    if (a.wide) {
        sum_sequences<Job, true>(a);
    } else {
        sum_sequences<Job, false>(a);
    }
}

template <typename Source, typename Formula> __device__ __forceinline__ void apply_inside(const NormArgs &a) {
    if (a.wide) {
        apply_inside<Source, Formula, WIDTH>(a);
    } else {
        apply_inside<Source, Formula, 1>(a);
    }
}

template <typename Source, typename Formula> __device__ __forceinline__ void apply_last(const NormArgs &a) {
    if (a.wide) {
        apply_last<Source, Formula, WIDTH>(a);
    } else {
        apply_last<Source, Formula, 1>(a);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) batch_forward(const NormArgs a) {
    if (a.wide) {
        batch_forward_of<true>(a);
    } else {
        batch_forward_of<false>(a);
    }
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) batch_backward(const NormArgs a) {
    if (a.wide) {
        batch_backward_of<true>(a);
    } else {
        batch_backward_of<false>(a);
    }
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) layer_forward(const NormArgs a) {
    if (a.wide) {
        layer_forward_of<true>(a);
    } else {
        layer_forward_of<false>(a);
    }
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) layer_backward(const NormArgs a) {
    if (a.wide) {
        layer_backward_of<true>(a);
    } else {
        layer_backward_of<false>(a);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) sequence_mean(const NormArgs a) {
    sum_sequences<Mean>(a);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) sequence_variance(const NormArgs a) {
    sum_sequences<Variance>(a);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) sequence_gradients(const NormArgs a) {
    sum_sequences<Gradients>(a);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) layer_variance(const NormArgs a) {
    sum_sequences<LayerVariance>(a);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) layer_gradients(const NormArgs a) {
    sum_sequences<LayerGradients>(a);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) layer_shared(const NormArgs a) {
    sum_sequences<Shared, false>(a);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) column_mean(const NormArgs a) {
    sum_columns<Mean>(a);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) column_variance(const NormArgs a) {
    sum_columns<Variance>(a);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) column_gradients(const NormArgs a) {
    sum_columns<Gradients>(a);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) layer_units(const NormArgs a) {
    sum_columns<Units>(a);
}

// The running statistics as those of the batch.
extern "C" __global__ void __launch_bounds__(THREADS, 2) running_statistics(const NormArgs a) {
    const u64 c = u64(blockIdx.x) * THREADS + threadIdx.x;
    if (c >= a.channels) return;
    const double mean = double(a.running_mean.at(c)), inv = inv_std(double(a.running_var.at(c)), a.eps);
    a.mean.at(c) = mean;
    a.inv_std.at(c) = inv;
    a.coefficients[c] = normalize(a, c, mean, inv).coefficients();
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) normalize_inside(const NormArgs a) {
    apply_inside<OfX, Normalize>(a);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) differentiate_inside(const NormArgs a) {
    apply_inside<OfBoth, Rectified<Differentiate>>(a);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) scale_inside(const NormArgs a) {
    apply_inside<OfBoth, Rectified<Scale>>(a);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) normalize_last(const NormArgs a) {
    apply_last<OfX, Normalize>(a);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) differentiate_last(const NormArgs a) {
    apply_last<OfBoth, Rectified<Differentiate>>(a);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) scale_last(const NormArgs a) {
    apply_last<OfBoth, Rectified<Scale>>(a);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) layer_normalize(const NormArgs a) {
    apply_inside<OfX, LayerNormalize>(a);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) layer_differentiate(const NormArgs a) {
    apply_inside<OfWeighted, LayerDifferentiate>(a);
}
