// The step: one launch for all parameters. Rule is the struct of a rule, KINDS the storages that meet in this list; LAYERWISE
// says whether the rule has norms of each parameter, so that each has coefficients of its own (layerwise.cu).
//
// scale and sign -> clip by value -> clip by norm -> coupled l2 -> rule, with decoupled decay on the old parameter.
// What changes from step to step is in device memory, the counts of updates too, so a captured step can be replayed.

// A group's hyperparameters, and the options that every rule has.
struct Group {
    Rule::Hyper hyper;
    double weight_decay, l2, maximize;
};

struct StepArgs {
    const Array *parameters, *gradients;
    const Array *states; // Rule::STATES of each parameter
    const u64 *groups;   // the number of its group
    const Group *values;
    u64 *counters; // steps completed, then the updates of each parameter
    const Verdict *verdict; // null: nothing was asked
    unsigned *ticket;
    u64 count, blocks;
    double clip_value; // infinite: none
    // Of rules with norms of each parameter: its coefficients, the sums of squares of its blocks and of what the rule
    // measures there, and the number that is kept of it.
    Rule::Coefficients<double> *adapted;
    double *of_blocks;
    const Array *numbers;
};

// The numbers of one (group, t), in f64.
struct Row {
    Rule::Coefficients<double> coefficients;
    double keep, l2;
    bool maximize, decay, couple;
};

__device__ __noinline__ void fill(Row &row, const Group &group, const u64 t) {
    row.coefficients = Rule::coefficients(group.hyper, t);
    row.keep = 1.0 - group.hyper.lr * group.weight_decay;
    row.l2 = group.l2;
    row.maximize = group.maximize != 0.0;
    row.decay = group.weight_decay != 0.0;
    row.couple = group.l2 != 0.0;
}

// The whole pipeline of one (group, t), in one arithmetic. A stage that is off is not run: with a neutral number it would
// change NaN, -0 and infinities.
template <typename A> struct Formula {
    Rule::Coefficients<A> coefficients;
    A clip, scale, l2, keep;
    bool maximize, clips, scales, couple, decay;

    __device__ __forceinline__ Formula(const Row &row, const StepArgs &a)
        : coefficients(Rule::rounded<A>(row.coefficients)), clip(A(a.clip_value)),
          scale(a.verdict ? A(a.verdict->scale) : A(1.0)), l2(A(row.l2)), keep(A(row.keep)), maximize(row.maximize),
          clips(a.clip_value < __longlong_as_double(0x7ff0000000000000LL)), scales(a.verdict && a.verdict->scales),
          couple(row.couple), decay(row.decay) {}

    // What happens to gradients before the rule sees them.
    __device__ __forceinline__ A prepared(const A p, A g) const {
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
        if (decay) p = keep * p;
        Rule::update(coefficients, p, g, s);
    }
};

constexpr unsigned STATES = Rule::STATES;
constexpr unsigned SLOTS = STATES > 0 ? STATES : 1; // arrays have at least one element

// Updates the elements of a block.
template <typename P, typename G>
__device__ __forceinline__ void update(const StepArgs &a, const Row &row, const u64 tensor, const u64 block) {
    typedef typename P::Computed A;
    typedef typename P::Stored PS;
    typedef typename G::Stored GS;
    // 16 bytes of the narrower array.
    constexpr unsigned WIDTH = 16 / (sizeof(PS) < sizeof(GS) ? sizeof(PS) : sizeof(GS));
    const Array &parameter = a.parameters[tensor], &gradient = a.gradients[tensor];
    const Formula<A> formula(row, a);
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
            for (unsigned j = 0; j < WIDTH; ++j) {
                A x = P::load(ps.at[j]), s[SLOTS];
                for (unsigned k = 0; k < STATES; ++k) s[k] = ss[k].at[j];
                formula.apply(x, G::load(gs.at[j]), s);
                ps.at[j] = P::store(x);
                for (unsigned k = 0; k < STATES; ++k) ss[k].at[j] = s[k];
            }
            *reinterpret_cast<Pack<PS, WIDTH> *>(p + i) = ps;
            for (unsigned k = 0; k < STATES; ++k) *reinterpret_cast<Pack<A, WIDTH> *>(plain[k] + i) = ss[k];
        }
    }
    for (u64 i = done + threadIdx.x; i < range.end; i += blockDim.x) {
        PS *const p = place<PS>(parameter, i);
        A x = P::load(*p), s[SLOTS];
        for (unsigned k = 0; k < STATES; ++k) s[k] = *place<A>(states[k], i);
        formula.apply(x, G::load(*place<const GS>(gradient, i)), s);
        *p = P::store(x);
        for (unsigned k = 0; k < STATES; ++k) *place<A>(states[k], i) = s[k];
    }
}

extern "C" __global__ void __launch_bounds__(256, 2) step(const StepArgs a) {
    __shared__ Row row;
    if (a.verdict && a.verdict->skip) return;
    u64 group = ~0ull, t = 0, of = ~0ull; // which row this is
    for (u64 block = blockIdx.x; block < a.blocks; block += gridDim.x) {
        const u64 tensor = find(a.parameters, a.count, block);
        if (!a.gradients[tensor].data) continue;
        if (a.groups[tensor] != group || a.counters[1 + tensor] + 1 != t || (LAYERWISE && tensor != of)) {
            group = a.groups[tensor];
            t = a.counters[1 + tensor] + 1;
            of = tensor;
            __syncthreads();
            if (threadIdx.x == 0) {
                fill(row, a.values[group], t);
                if (LAYERWISE) row.coefficients = a.adapted[tensor];
            }
            __syncthreads();
        }
        switch (a.parameters[tensor].storage * 4 + a.gradients[tensor].storage) {
#define KIND(P, G) \
    case STORAGE_##P * 4 + STORAGE_##G: update<P, G>(a, row, tensor, block); break;
            KINDS(KIND)
        }
    }
    if (last_block(a.ticket, gridDim.x)) {
        for (u64 i = threadIdx.x; i < a.count; i += blockDim.x) {
            if (a.gradients[i].data) a.counters[1 + i] += 1;
        }
        if (threadIdx.x == 0) a.counters[0] += 1;
    }
}
