// The step: one launch for all parameters. Rule is the struct of a rule, KINDS the storages that meet in this list; LAYERWISE
// says whether the rule has norms of each parameter, so that each has coefficients of its own (layerwise.cu).
//
// unscale -> sign -> clip by value -> clip by norm -> coupled l2 -> rule -> its step, with decoupled decay, is subtracted
// from the parameter in one rounding -> what follows it: Lookahead, an average, the exact copy of a half-precision parameter (LOOKAHEAD, AVERAGE,
// MASTER if defined), or what its rounding has lost (REMAINDER). States are in fewer bytes, or parameters rounded at random,
// if COMPACT is defined: of which states, it says (compact.cu).
// What changes from step to step is in device memory, the counts of updates too, so a captured step can be replayed.

#if defined(MASTER) || defined(AVERAGE) || defined(LOOKAHEAD) || defined(REMAINDER)
#define FOLLOWED
#endif

// A group's hyperparameters, and the options that every rule has.
struct Group {
    Rule::Hyper hyper;
    double weight_decay, l2, maximize, decay_after, decay_implicit, decay_unscaled, current_correction;
};

struct StepArgs {
    const Array *parameters, *gradients;
    const Array *states; // Rule::STATES of each parameter
    const u64 *groups;   // the number of its group
    const Group *values;
    u64 *counters; // steps completed, then the updates of each parameter
    Past *products; // Rule::PRODUCTS of each parameter; null: no number has changed
    const Verdict *verdict; // null: nothing was asked
    unsigned *ticket;
    u64 count, blocks;
    double clip_value; // infinite: none
    double grad_scale; // what gradients come multiplied by; 0: nothing
    // Of rules with norms of each parameter: its coefficients, the sums of squares of its blocks and of what
    // the rule measures there, and the number that is kept of it.
    Rule::Coefficients<double> *adapted;
    double *of_blocks;
    const Array *numbers;
    i64 *units; // its gradient is multiplied by two to minus this: its coefficients are for such
#ifdef FOLLOWED
    const Array *kept;       // KEPT of each parameter
    u64 warms, start, every; // of the average
    double decay;            // negative: all points weigh the same
    u64 period;              // of Lookahead
    double alpha;
#endif
};

// What decoupled decay is of: the old parameter, the new one, or the new one with the decay in it.
enum class Decay : unsigned { NONE, BEFORE, AFTER, IMPLICIT };

// The numbers of one (group, t, products), in f64.
struct Row {
    Rule::Coefficients<double> coefficients;
    double part, l2, unscale; // part: of the parameter, for decoupled decay
    int unit;                 // gradients are multiplied by two to minus this, and the coefficients are for such
    Decay decay;
    bool maximize, couple;
#ifdef AVERAGE
    double weight;
    bool counts;
#endif
#ifdef LOOKAHEAD
    bool begins, ends;
#endif
};

// What the product of number k of a parameter is with its next update.
__device__ __forceinline__ Past next(const StepArgs &a, const u64 tensor, const unsigned k) {
    const u64 t = a.counters[1 + tensor] + 1;
    if (!a.products) return {-1.0, t, 1.0};
    const Past past = a.products[tensor * Rule::PRODUCTS + k];
    const double value = Rule::value(a.values[a.groups[tensor]].hyper, k);
    const bool same = past.base == value || past.base < 0.0 || past.constant == 0;
    if (same && past.constant + 1 == t) return {value, t, 1.0};
    return {past.base, past.constant, past.rest * Rule::factor(k, value, t)};
}

__device__ __forceinline__ Progress progress(const StepArgs &a, const u64 tensor) {
    Progress at = {a.counters[1 + tensor] + 1, a.values[a.groups[tensor]].current_correction != 0.0, {}};
    for (unsigned k = 0; k < Rule::PRODUCTS; ++k) at.past[k] = next(a, tensor, k);
    return at;
}

// Whether two parameters of a group have the coefficients of one row.
__device__ __forceinline__ bool alike(const StepArgs &a, const u64 tensor, const u64 of) {
    bool same = a.groups[tensor] == a.groups[of] && a.counters[1 + tensor] == a.counters[1 + of];
    for (unsigned k = 0; same && a.products && k < Rule::PRODUCTS; ++k) {
        const Past &one = a.products[tensor * Rule::PRODUCTS + k], &two = a.products[of * Rule::PRODUCTS + k];
        same = one.base == two.base && one.constant == two.constant && one.rest == two.rest;
    }
    return same;
}

__device__ __noinline__ void fill(Row &row, const StepArgs &a, const u64 tensor) {
    const Group &group = a.values[a.groups[tensor]];
    row.unscale = a.verdict ? a.verdict->unscale : unscale_of(a.grad_scale, nullptr);
    row.coefficients = Rule::coefficients(group.hyper, progress(a, tensor));
    const double scaled = group.hyper.lr * group.weight_decay;
    const double part = group.decay_unscaled != 0.0 ? group.weight_decay : scaled;
    row.part = part;
    row.decay = part == 0.0                 ? Decay::NONE
                : group.decay_implicit != 0.0 ? Decay::IMPLICIT
                : group.decay_after != 0.0    ? Decay::AFTER
                                              : Decay::BEFORE;
    row.l2 = group.l2;
    row.unit = 0;
    row.maximize = group.maximize != 0.0;
    row.couple = group.l2 != 0.0;
}

// What follows update t: whether it counts in the average and with what weight; whether Lookahead starts from the
// parameter before it, and goes only a part of the way in it.
__device__ __forceinline__ void follow(Row &row, const StepArgs &a, const u64 t) {
#ifdef AVERAGE
    const u64 since = t < a.start ? 0 : t - a.start;
    const double points = double(since / a.every), warm = (1.0 + points) / (10.0 + points);
    row.counts = since > 0 && since % a.every == 0;
    if (since == a.every) row.weight = 1.0;
    else if (a.decay < 0.0) row.weight = 1.0 / points;
    else row.weight = 1.0 - (a.warms && warm < a.decay ? warm : a.decay);
#endif
#ifdef LOOKAHEAD
    row.begins = (t - 1) % a.period == 0;
    row.ends = t % a.period == 0;
#endif
}

// The whole pipeline of one (group, t), in one arithmetic. A stage that is off is not run: with a neutral number it would
// change NaN, -0 and infinities.
template <typename A> struct Formula {
    Rule::Coefficients<A> coefficients;
    A clip, scale, l2, part, whole, unscale; // whole: 1 + part
    Decay decay;
    bool unscales, maximize, clips, scales, couple;

    // 2^-shift is exact and may come first: what it makes subnormal, or infinite, is nothing, or infinite, once all is in.
    __device__ __forceinline__ Formula(const Row &row, const StepArgs &a, const int shift)
        : coefficients(Rule::rounded<A>(row.coefficients)), clip(A(times_two_to(a.clip_value, -shift))),
          scale(a.verdict ? A(a.verdict->scale[sizeof(A) == 4]) : A(1.0)), l2(A(row.l2)), part(A(row.part)),
          whole(A(1.0 + row.part)), unscale(A(times_two_to(row.unscale == 0.0 ? 1.0 : row.unscale, -shift))),
          decay(row.decay), unscales(row.unscale != 0.0 || shift != 0), maximize(row.maximize),
          clips(a.clip_value < __longlong_as_double(0x7ff0000000000000LL)), scales(a.verdict && a.verdict->scales),
          couple(row.couple) {}

    __device__ __forceinline__ Formula(const Row &row, const StepArgs &a)
        : Formula(row, a, (a.verdict ? static_cast<int>(a.verdict->shift[sizeof(A) == 4]) : 0) + (LAYERWISE ? row.unit : 0)) {}

    // What happens to gradients before the rule sees them.
    __device__ __forceinline__ A prepared(const A p, A g) const {
        if (unscales) g = g * unscale;
        if (maximize) g = -g;
        if (clips) {
            g = -clip < g ? g : g == g ? -clip : g;
            g = g < clip ? g : g == g ? clip : g;
        }
        if (scales) g = g * scale;
        if (couple) g = g + l2 * p;
        return g;
    }

    __device__ __forceinline__ void apply(A &p, A g, A *s) const {
        g = prepared(p, g);
        A step = Rule::update(coefficients, p, g, s);
        // Part of the step: 1 - part, or the new parameter, rounded by itself would lose a decay near its last bit.
        if (decay == Decay::BEFORE) step = part * p + step;
        else if (decay == Decay::AFTER) step = step + part * (p - step);
        else if (decay == Decay::IMPLICIT) step = (step + part * p) / whole;
        p = p - step;
    }
};

// The arrays that are kept of each parameter: its exact copy, its average, Lookahead's slow weights, its remainder, and
// what a float32 average has lost to rounding.
constexpr unsigned KEPT = 5;

#ifdef FOLLOWED
// What follows the rule, for one parameter in one update. Arrays that this update leaves alone are null; the others were
// allocated as wholes, so they are aligned.
template <typename P> struct After {
    typedef typename P::Computed A;
    typedef typename P::Stored PS;
    A *master, *average, *slow, *rest;
    short *remainder;
    A weight, alpha;
    bool moves, begins, ends;

    // What a thread holds of them.
    template <unsigned W> struct Lanes {
        Pack<A, W> master, average, slow, rest;
        Pack<short, W> remainder;
    };

    __device__ __forceinline__ After(const StepArgs &a, const Row &row, const u64 tensor)
        : master(nullptr), average(nullptr), slow(nullptr), rest(nullptr), remainder(nullptr), weight(0), alpha(0),
          moves(false), begins(false), ends(false) {
        const Array *const kept = a.kept + tensor * KEPT;
#ifdef MASTER
        if (sizeof(PS) == 2) master = reinterpret_cast<A *>(kept[0].data);
#endif
#ifdef AVERAGE
        if (row.counts) average = reinterpret_cast<A *>(kept[1].data);
        if (sizeof(A) == 4 && row.counts) rest = reinterpret_cast<A *>(kept[4].data);
        weight = A(row.weight);
        moves = average && weight != A(1.0);
#endif
#ifdef LOOKAHEAD
        begins = row.begins;
        alpha = A(a.alpha);
        ends = row.ends && alpha != A(1.0);
        if (begins || ends) slow = reinterpret_cast<A *>(kept[2].data);
#endif
#ifdef REMAINDER
        remainder = reinterpret_cast<short *>(kept[3].data);
#endif
    }

    template <unsigned W> __device__ __forceinline__ void load(Lanes<W> &lanes, const u64 i) const {
        if (master) lanes.master = *reinterpret_cast<const Pack<A, W> *>(master + i);
        if (moves) lanes.average = *reinterpret_cast<const Pack<A, W> *>(average + i);
        if (moves && rest) lanes.rest = *reinterpret_cast<const Pack<A, W> *>(rest + i);
        if (slow && !begins) lanes.slow = *reinterpret_cast<const Pack<A, W> *>(slow + i);
        if (remainder) lanes.remainder = *reinterpret_cast<const Pack<short, W> *>(remainder + i);
    }

#ifdef COMPACT
    // The first `count` of them.
    template <unsigned W> __device__ __forceinline__ void load(Lanes<W> &lanes, const u64 i, const unsigned count) const {
        if (master) lanes.master = some<W>(master + i, count);
        if (moves) lanes.average = some<W>(average + i, count);
        if (moves && rest) lanes.rest = some<W>(rest + i, count);
        if (slow && !begins) lanes.slow = some<W>(slow + i, count);
        if (remainder) lanes.remainder = some<W>(remainder + i, count);
    }

    template <unsigned W>
    __device__ __forceinline__ void store(const Lanes<W> &lanes, const u64 i, const unsigned count) const {
        if (master) put(lanes.master, master + i, count);
        if (average) put(lanes.average, average + i, count);
        if (rest) put(lanes.rest, rest + i, count);
        if (begins) put(lanes.slow, slow + i, count);
        if (remainder) put(lanes.remainder, remainder + i, count);
    }
#endif

    // Before the rule. An element that is not the rounding of its copy was changed from outside, and counts as it is.
    template <unsigned W> __device__ __forceinline__ void before(A &p, const PS bits, Lanes<W> &lanes, const unsigned j) const {
#ifdef MASTER
        if (master && P::store(lanes.master.at[j]) == bits) p = lanes.master.at[j];
#endif
#ifdef REMAINDER
        if (remainder) p = SPLIT::joined(bits, lanes.remainder.at[j]);
#endif
        if (begins) lanes.slow.at[j] = p;
    }

    template <unsigned W> __device__ __forceinline__ void after(A &p, Lanes<W> &lanes, const unsigned j) const {
        if (ends) p = lanes.slow.at[j] + alpha * (p - lanes.slow.at[j]);
        if (moves) {
            const A old = lanes.average.at[j];
            A by = weight * (p - old);
            if (rest) by = by + lanes.rest.at[j];
            lanes.average.at[j] = old + by;
            if (rest) lanes.rest.at[j] = by - (lanes.average.at[j] - old);
        } else if (average) {
            lanes.average.at[j] = p;
            lanes.rest.at[j] = A(0);
        }
        if (master) lanes.master.at[j] = p;
#ifdef REMAINDER
        if (remainder) lanes.remainder.at[j] = SPLIT::remainder(p);
#endif
    }

    template <unsigned W> __device__ __forceinline__ void store(const Lanes<W> &lanes, const u64 i) const {
        if (master) *reinterpret_cast<Pack<A, W> *>(master + i) = lanes.master;
        if (average) *reinterpret_cast<Pack<A, W> *>(average + i) = lanes.average;
        if (rest) *reinterpret_cast<Pack<A, W> *>(rest + i) = lanes.rest;
        if (begins) *reinterpret_cast<Pack<A, W> *>(slow + i) = lanes.slow;
        if (remainder) *reinterpret_cast<Pack<short, W> *>(remainder + i) = lanes.remainder;
    }
};
#else
template <typename P> struct After {
    template <unsigned W> struct Lanes {};
    __device__ __forceinline__ After(const StepArgs &, const Row &, const u64) {}
    template <unsigned W> __device__ __forceinline__ void load(Lanes<W> &, const u64) const {}
    template <unsigned W, typename A, typename PS>
    __device__ __forceinline__ void before(A &, const PS, Lanes<W> &, const unsigned) const {}
    template <unsigned W, typename A> __device__ __forceinline__ void after(A &, Lanes<W> &, const unsigned) const {}
    template <unsigned W> __device__ __forceinline__ void store(const Lanes<W> &, const u64) const {}
#ifdef COMPACT
    template <unsigned W> __device__ __forceinline__ void load(Lanes<W> &, const u64, const unsigned) const {}
    template <unsigned W> __device__ __forceinline__ void store(const Lanes<W> &, const u64, const unsigned) const {}
#endif
};
#endif

constexpr unsigned STATES = Rule::STATES;
constexpr unsigned SLOTS = STATES > 0 ? STATES : 1; // arrays have at least one element

#ifdef COMPACT
// Whether all parts are asked for before the first is worked on: if there are registers for them.
#ifdef FOLLOWED
constexpr bool AHEAD = false;
#else
constexpr bool AHEAD = STATES < 4;
#endif

// Updates the elements of a block: a warp takes as many at a time as codes share a scale.
template <typename P, typename G>
__device__ __forceinline__ void update(const StepArgs &a, const Row &row, const u64 tensor, const u64 block) {
    typedef typename P::Stored PS;
    typedef typename G::Stored GS;
    static_assert(sizeof(typename P::Computed) == 4, "what is rounded at random is of float32 arithmetic");
    const Array &parameter = a.parameters[tensor], &gradient = a.gradients[tensor];
    const Formula<float> formula(row, a);
    const After<P> after(a, row, tensor);
    const Array *const states = a.states + tensor * STATES;
    // Steps are told apart by 32 bits of their number, as on the host.
    const Random random = {0, a.counters[0], tensor};
    const Range range = elements(parameter, block);
    PS *const p = reinterpret_cast<PS *>(parameter.data);
    const GS *const g = reinterpret_cast<const GS *>(gradient.data);
    const bool straight = parameter.axes == 0 && gradient.axes == 0 && aligned(p) && aligned(g);
    u64 first = range.start + threadIdx.x / WARP * CODES;
    for (; first < range.end; first += blockDim.x / WARP * CODES) {
        const bool wide = straight && range.end - first >= CODES;
        Pack<PS, WIDTH> ps[PARTS];
        Pack<GS, WIDTH> gs[PARTS];
        Stored stored[SLOTS][PARTS];
        float scales[SLOTS];
        Pack<float, WIDTH> ss[SLOTS][PARTS];
        const auto load = [&](const unsigned part) {
            const Here here(first, part, range.end);
            if (wide) {
                ps[part] = *reinterpret_cast<const Pack<PS, WIDTH> *>(p + here.i);
                gs[part] = *reinterpret_cast<const Pack<GS, WIDTH> *>(g + here.i);
#pragma unroll
                for (unsigned k = 0; k < STATES; ++k) stored[k][part].load(states[k], way(k), here.i);
            } else {
                ps[part] = gather<PS>(parameter, here);
                gs[part] = gather<GS>(gradient, here);
#pragma unroll
                for (unsigned k = 0; k < STATES; ++k) stored[k][part].load(states[k], way(k), here);
            }
        };
        Draws draws;
        if (IS_RANDOM<P>) draws = Draws(random, first);
#pragma unroll
        for (unsigned k = 0; k < STATES; ++k) scales[k] = scale_at(states[k], way(k), first);
#pragma unroll
        for (unsigned part = 0; AHEAD && part < PARTS; ++part) load(part);
#pragma unroll
        for (unsigned part = 0; part < PARTS; ++part) {
            const Here here(first, part, range.end);
            if (!AHEAD) load(part);
            typename After<P>::template Lanes<WIDTH> kept = {};
            after.load(kept, here.i, here.count);
#pragma unroll
            for (unsigned j = 0; j < WIDTH; ++j) {
                float x = P::load(ps[part].at[j]), s[SLOTS];
#pragma unroll
                for (unsigned k = 0; k < STATES; ++k) s[k] = stored[k][part].get(j, way(k), scales[k]);
                after.before(x, ps[part].at[j], kept, j);
                formula.apply(x, G::load(gs[part].at[j]), s);
                after.after(x, kept, j);
                ps[part].at[j] = stored_so<P>(x, draws, part, j);
                // What is not there has no size.
#pragma unroll
                for (unsigned k = 0; k < STATES; ++k) ss[k][part].at[j] = j < here.count ? s[k] : 0.0f;
            }
            if (wide) *reinterpret_cast<Pack<PS, WIDTH> *>(p + here.i) = ps[part];
            else scatter(ps[part], parameter, here);
            after.store(kept, here.i, here.count);
        }
        // Late if it can be: it takes registers.
        if (!IS_RANDOM<P>) draws = Draws(random, first);
#pragma unroll
        for (unsigned k = 0; k < STATES; ++k) store_state(ss[k], states[k], way(k), first, range.end, draws);
    }
}
#else
// Updates the elements of a block.
template <typename P, typename G>
__device__ __forceinline__ void update(const StepArgs &a, const Row &row, const u64 tensor, const u64 block) {
    typedef typename P::Computed A;
    typedef typename P::Stored PS;
    typedef typename G::Stored GS;
    // 16 bytes of the narrower array; four float64 states leave registers for one element only.
    constexpr unsigned NARROW = sizeof(PS) < sizeof(GS) ? sizeof(PS) : sizeof(GS);
    constexpr unsigned WIDTH = sizeof(A) == 8 && STATES > 3 ? 1 : 16 / NARROW;
    const Array &parameter = a.parameters[tensor], &gradient = a.gradients[tensor];
    const Formula<A> formula(row, a);
    const After<P> after(a, row, tensor);
    const Array *const states = a.states + tensor * STATES;
    A *plain[SLOTS];
    bool wide = parameter.axes == 0 && gradient.axes == 0 && aligned(parameter.data) && aligned(gradient.data);
    for (unsigned k = 0; k < STATES; ++k) {
        plain[k] = reinterpret_cast<A *>(states[k].data);
        wide = wide && states[k].axes == 0 && aligned(plain[k]);
    }
    const Range range = elements(parameter, block);
    u64 done = range.start;
    if (wide) {
        PS *const p = reinterpret_cast<PS *>(parameter.data);
        const GS *const g = reinterpret_cast<const GS *>(gradient.data);
        done = range.end - (range.end - range.start) % WIDTH;
        for (u64 i = range.start + threadIdx.x * WIDTH; i < done; i += blockDim.x * WIDTH) {
            Pack<PS, WIDTH> ps = *reinterpret_cast<const Pack<PS, WIDTH> *>(p + i);
            const Pack<GS, WIDTH> gs = *reinterpret_cast<const Pack<GS, WIDTH> *>(g + i);
            Pack<A, WIDTH> ss[SLOTS];
            for (unsigned k = 0; k < STATES; ++k) ss[k] = *reinterpret_cast<const Pack<A, WIDTH> *>(plain[k] + i);
            typename After<P>::template Lanes<WIDTH> kept = {};
            after.load(kept, i);
            for (unsigned j = 0; j < WIDTH; ++j) {
                A x = P::load(ps.at[j]), s[SLOTS];
                for (unsigned k = 0; k < STATES; ++k) s[k] = ss[k].at[j];
                after.before(x, ps.at[j], kept, j);
                formula.apply(x, G::load(gs.at[j]), s);
                after.after(x, kept, j);
                ps.at[j] = P::store(x);
                for (unsigned k = 0; k < STATES; ++k) ss[k].at[j] = s[k];
            }
            *reinterpret_cast<Pack<PS, WIDTH> *>(p + i) = ps;
            for (unsigned k = 0; k < STATES; ++k) *reinterpret_cast<Pack<A, WIDTH> *>(plain[k] + i) = ss[k];
            after.store(kept, i);
        }
    }
    for (u64 i = done + threadIdx.x; i < range.end; i += blockDim.x) {
        PS *const p = place<PS>(parameter, i);
        A x = P::load(*p), s[SLOTS];
        typename After<P>::template Lanes<1> kept = {};
        for (unsigned k = 0; k < STATES; ++k) s[k] = *place<A>(states[k], i);
        after.load(kept, i);
        after.before(x, *p, kept, 0);
        formula.apply(x, G::load(*place<const GS>(gradient, i)), s);
        after.after(x, kept, 0);
        *p = P::store(x);
        for (unsigned k = 0; k < STATES; ++k) *place<A>(states[k], i) = s[k];
        after.store(kept, i);
    }
}
#endif

// Blocks of threads that a multiprocessor must have registers for.
#if defined(AVERAGE) && defined(LOOKAHEAD)
#define RESIDENT (Rule::STATES > 1 ? 1 : 2)
#elif defined(COMPACT) && defined(FOLLOWED)
#define RESIDENT (Rule::STATES > 3 ? 1 : 2)
#else
#define RESIDENT 2
#endif

extern "C" __global__ void __launch_bounds__(256, RESIDENT) step(const StepArgs a) {
    __shared__ Row row;
    if (a.verdict && a.verdict->skip) return;
    u64 of = ~0ull; // whose row this is
    for (u64 block = blockIdx.x; block < a.blocks; block += gridDim.x) {
        const u64 tensor = find(a.parameters, a.count, block);
        if (!a.gradients[tensor].data) continue;
        if (tensor != of) {
            const bool known = !LAYERWISE && of != ~0ull && alike(a, tensor, of);
            of = tensor;
            if (!known) {
                __syncthreads();
                if (threadIdx.x == 0) {
                    fill(row, a, tensor);
                    follow(row, a, a.counters[1 + tensor] + 1);
                    if (LAYERWISE) {
                        row.coefficients = a.adapted[tensor];
                        row.unit = static_cast<int>(a.units[tensor]);
                        row.l2 = times_two_to(row.l2, -row.unit);
                    }
                }
                __syncthreads();
            }
        }
        switch (a.parameters[tensor].storage * 4 + a.gradients[tensor].storage) {
#define KIND(P, G) \
    case STORAGE_##P * 4 + STORAGE_##G: update<P, G>(a, row, tensor, block); break;
            KINDS(KIND)
        }
    }
    if (last_block(a.ticket, gridDim.x)) {
        for (u64 i = threadIdx.x; i < a.count; i += blockDim.x) {
            if (!a.gradients[i].data) continue;
            for (unsigned k = 0; a.products && k < Rule::PRODUCTS; ++k) {
                a.products[i * Rule::PRODUCTS + k] = next(a, i, k);
            }
            a.counters[1 + i] += 1;
        }
        if (threadIdx.x == 0) a.counters[0] += 1;
    }
}
