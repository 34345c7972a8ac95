// The passes before the step, of rules with norms of each parameter (rust/step/layerwise.rs). First every block is
// measured, by the canonical tree, as the step will see it, and nothing is changed; then each parameter has coefficients of
// its own.

// The sums over a block: of the parameter, and of what the rule measures. Called by a warp; thread t holds lanes 2t and
// 2t + 1 of the summation tree.
template <typename P, typename G, typename Sum>
__device__ __forceinline__ void gauge_block(const StepArgs &a, const Row &row, const u64 tensor, const u64 block, const Sum sum, double *sums) {
    typedef typename P::Computed A;
    typedef typename P::Stored PS;
    typedef typename G::Stored GS;
    const Array &parameter = a.parameters[tensor], &gradient = a.gradients[tensor];
    const Formula<A> formula(row, a);
    const Array *const states = a.states + tensor * STATES;
    const auto exact = [&](const PS bits, const u64 i) -> A {
#ifdef MASTER
        const A *const master = reinterpret_cast<const A *>(a.kept[tensor * KEPT].data);
        if (sizeof(PS) == 2 && master && P::store(master[i]) == bits) return master[i];
#endif
#ifdef REMAINDER
        if constexpr (sizeof(PS) == 2) {
            return SPLIT::joined(bits, reinterpret_cast<const short *>(a.kept[tensor * KEPT + 3].data)[i]);
        }
#endif
        return P::load(bits);
    };
    const Range range = elements(parameter, block);
    double of_parameter[2] = {0.0, 0.0}, of_measured[2] = {0.0, 0.0};
    const auto add = [&](const A p, const A g, const A *s, const unsigned lane) {
        const A x = Rule::measured(formula.coefficients, p, formula.prepared(p, g), s);
        sum.add(of_parameter[lane], double(p));
        sum.add(of_measured[lane], double(x));
    };
    const auto pairs = [](const Array &array, const u64 size) {
        return array.axes == 0 && reinterpret_cast<u64>(array.data) % (2 * size) == 0;
    };
    bool wide = pairs(parameter, sizeof(PS)) && pairs(gradient, sizeof(GS));
    for (unsigned k = 0; k < STATES; ++k) wide = wide && pairs(states[k], sizeof(A));
    u64 i = range.start + 2 * (threadIdx.x % WARP);
    if (wide) {
        constexpr unsigned AHEAD = sizeof(A) == 8 ? 2 : 4; // loads in flight, of each array
        for (; i + (AHEAD - 1) * LANES + 1 < range.end; i += AHEAD * LANES) {
            Pack<PS, 2> p[AHEAD];
            Pack<GS, 2> g[AHEAD];
            Pack<A, 2> s[AHEAD][SLOTS];
#pragma unroll
            for (unsigned n = 0; n < AHEAD; ++n) {
                const u64 at = i + n * LANES;
                p[n] = *reinterpret_cast<const Pack<PS, 2> *>(reinterpret_cast<const PS *>(parameter.data) + at);
                g[n] = *reinterpret_cast<const Pack<GS, 2> *>(reinterpret_cast<const GS *>(gradient.data) + at);
                for (unsigned k = 0; k < STATES; ++k) {
#ifdef COMPACT
                    s[n][k] = {{load_state(states[k], way(k), at), load_state(states[k], way(k), at + 1)}};
#else
                    s[n][k] = *reinterpret_cast<const Pack<A, 2> *>(reinterpret_cast<const A *>(states[k].data) + at);
#endif
                }
            }
#pragma unroll
            for (unsigned n = 0; n < AHEAD; ++n) {
#pragma unroll
                for (unsigned lane = 0; lane < 2; ++lane) {
                    A state[SLOTS];
                    for (unsigned k = 0; k < STATES; ++k) state[k] = s[n][k].at[lane];
                    add(exact(p[n].at[lane], i + n * LANES + lane), G::load(g[n].at[lane]), state, lane);
                }
            }
        }
    }
    for (; i < range.end; i += LANES) {
#pragma unroll
        for (unsigned lane = 0; lane < 2; ++lane) {
            if (i + lane >= range.end) continue;
            A state[SLOTS];
#ifdef COMPACT
            for (unsigned k = 0; k < STATES; ++k) state[k] = load_state(states[k], way(k), i + lane);
#else
            for (unsigned k = 0; k < STATES; ++k) state[k] = *place<const A>(states[k], i + lane);
#endif
            const A p = exact(*place<const PS>(parameter, i + lane), i + lane);
            add(p, G::load(*place<const GS>(gradient, i + lane)), state, lane);
        }
    }
    sums[0] = sum.fold(of_parameter[0], of_parameter[1]);
    sums[1] = sum.fold(of_measured[0], of_measured[1]);
}

// A warp for each block.
extern "C" __global__ void __launch_bounds__(256, 2) gauge(const StepArgs a) {
    constexpr unsigned WARPS = 256 / WARP;
    __shared__ Row rows[WARPS];
    if (a.verdict && a.verdict->skip) return;
    const unsigned warp = threadIdx.x / WARP;
    Row &row = rows[warp];
    u64 of = ~0ull; // whose row this is
    for (u64 block = u64(blockIdx.x) * WARPS + warp; block < a.blocks; block += u64(gridDim.x) * WARPS) {
        const u64 tensor = find(a.parameters, a.count, block);
        if (!a.gradients[tensor].data) continue;
        if (tensor != of) {
            const bool known = of != ~0ull && alike(a, tensor, of);
            of = tensor;
            if (!known) {
                __syncwarp();
                if (threadIdx.x % WARP == 0) fill(row, a, tensor);
                __syncwarp();
            }
        }
        double sums[2] = {0.0, 0.0};
        switch (a.parameters[tensor].storage * 4 + a.gradients[tensor].storage) {
#define GAUGED(P, G) \
    case STORAGE_##P * 4 + STORAGE_##G: gauge_block<P, G>(a, row, tensor, block, Squares(), sums); break;
            KINDS(GAUGED)
        }
        if (threadIdx.x % WARP == 0) {
            a.of_blocks[block] = sums[0];
            a.of_blocks[a.blocks + block] = sums[1];
        }
    }
}

// What is asked of a block where squares have overflowed or underflowed; those of float32 do not.
template <typename P, typename G> struct AskGauge {
    static __device__ void block(const StepArgs &, const Row &, const u64, const u64, const Rare, double *) {}
};
template <> struct AskGauge<F64, F64> {
    static __device__ void block(const StepArgs &a, const Row &row, const u64 tensor, const u64 block, const Rare rare, double *sums) {
        gauge_block<F64, F64>(a, row, tensor, block, rare, sums);
    }
};

__device__ __forceinline__ double first_of(const Rule::Coefficients<double> &c) { return *reinterpret_cast<const double *>(&c); }

// Whether a number >= 0 is a normal one once it is rounded to f32, or as it is.
__device__ __forceinline__ bool is_normal(const double x, const bool narrow) {
    const double rounded = narrow ? double(float(x)) : x;
    return rounded >= two_to(narrow ? -126 : -1022) && rounded < infinity();
}

// The coefficients of each parameter, and the number that is kept of it. A block of threads for each.
extern "C" __global__ void __launch_bounds__(256, 2) settle(const StepArgs a) {
    __shared__ Row row;
    if (a.verdict && a.verdict->skip) return;
    for (u64 i = blockIdx.x; i < a.count; i += gridDim.x) {
        if (!a.gradients[i].data) continue;
        const u64 first = a.parameters[i].first, end = i + 1 < a.count ? a.parameters[i + 1].first : a.blocks;
        const double of_parameter = combine(a.of_blocks + first, end - first);
        const double of_measured = combine(a.of_blocks + a.blocks + first, end - first);
        Norm norms[2] = {{sqrt(of_parameter), 0}, {sqrt(of_measured), 0}};
        if (a.parameters[i].storage == STORAGE_F64 && (is_rare(of_parameter) || is_rare(of_measured))) {
            __syncthreads();
            if (threadIdx.x == 0) fill(row, a, i);
            __syncthreads();
            for (unsigned k = 0; k < 2; ++k) {
                const auto of_block = [&](const u64 block, const Rare rare) {
                    double sums[2] = {0.0, 0.0};
                    switch (a.parameters[i].storage * 4 + a.gradients[i].storage) {
#define ASKED_GAUGE(P, G) \
    case STORAGE_##P * 4 + STORAGE_##G: AskGauge<P, G>::block(a, row, i, first + block, rare, sums); break;
                        KINDS(ASKED_GAUGE)
                    }
                    return sums[k];
                };
                norms[k] = norm_of(k == 0 ? of_parameter : of_measured, a.of_blocks + k * a.blocks + first, end - first, of_block);
            }
        }
        if (threadIdx.x > 0) continue;
        const Rule::Hyper &hyper = a.values[a.groups[i]].hyper;
        const Progress at = progress(a, i);
        const double norm = norms[0].value(), other = norms[1].value();
        double *const kept = Rule::SCALAR ? reinterpret_cast<double *>(a.numbers[i].data) : nullptr;
        const double number = Rule::scalar(hyper, at.t, norm, other, kept ? *kept : 0.0);
        if (kept) *kept = number;
        Rule::Coefficients<double> adapted = Rule::coefficients(hyper, at, norm, other, number);
        a.units[i] = 0;
        if (Rule::RATIO && norms[0].root > 0.0 && norms[1].root > 0.0) {
            const bool narrow = a.parameters[i].storage != STORAGE_F64;
            const double ratio = first_of(adapted);
            const int step = (narrow ? 64 : 400) * (ratio < 1.0 ? 1 : -1);
            for (int unit = step; ratio == ratio && !is_normal(ratio, narrow) && unit != 7 * step; unit += step) {
                const double scaled = times_two_to(norms[1].root, norms[1].power - unit);
                const auto tried = Rule::coefficients(Rule::scaled(hyper, -unit), at, norm, scaled, number);
                if (!is_normal(first_of(tried), narrow)) continue;
                adapted = tried;
                a.units[i] = unit;
                break;
            }
        }
        a.adapted[i] = adapted;
    }
}
