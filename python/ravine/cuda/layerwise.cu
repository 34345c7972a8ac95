// The passes before the step, of rules with norms of each parameter (rust/step/layerwise.rs). First every block is
// measured, by the canonical tree, as the step will see it, and nothing is changed; then each parameter has coefficients of
// its own.

// The sums of the squares of a block: of the parameter, and of what the rule measures. Called by a warp; thread t holds
// lanes 2t and 2t + 1 of the summation tree.
template <typename P, typename G>
__device__ __forceinline__ void gauge_block(const StepArgs &a, const Row &row, const u64 tensor, const u64 block) {
    typedef typename P::Computed A;
    typedef typename P::Stored PS;
    typedef typename G::Stored GS;
    const Array &parameter = a.parameters[tensor], &gradient = a.gradients[tensor];
    const Formula<A> formula(row, a);
    const Array *const states = a.states + tensor * STATES;
    const auto exact = [&](const PS bits, const u64 i) {
#ifdef MASTER
        const A *const master = reinterpret_cast<const A *>(a.kept[tensor * KEPT].data);
        if (sizeof(PS) == 2 && master && P::store(master[i]) == bits) return master[i];
#endif
#ifdef REMAINDER
        return SPLIT::joined(bits, reinterpret_cast<const short *>(a.kept[tensor * KEPT + 3].data)[i]);
#endif
        return P::load(bits);
    };
    const Range range = elements(parameter, block);
    double of_parameter[2] = {0.0, 0.0}, of_measured[2] = {0.0, 0.0};
    const auto add = [&](const A p, const A g, const A *s, const unsigned lane) {
        const A x = Rule::measured(formula.coefficients, p, formula.prepared(p, g), s);
        of_parameter[lane] += double(p) * double(p);
        of_measured[lane] += double(x) * double(x);
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
    const double squares = fold_lanes(of_parameter[0], of_parameter[1]);
    const double measured = fold_lanes(of_measured[0], of_measured[1]);
    if (threadIdx.x % WARP == 0) {
        a.of_blocks[block] = squares;
        a.of_blocks[a.blocks + block] = measured;
    }
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
        switch (a.parameters[tensor].storage * 4 + a.gradients[tensor].storage) {
#define GAUGED(P, G) \
    case STORAGE_##P * 4 + STORAGE_##G: gauge_block<P, G>(a, row, tensor, block); break;
            KINDS(GAUGED)
        }
    }
}

// The coefficients of each parameter, and the number that is kept of it. A block of threads for each.
extern "C" __global__ void __launch_bounds__(256, 2) settle(const StepArgs a) {
    if (a.verdict && a.verdict->skip) return;
    for (u64 i = blockIdx.x; i < a.count; i += gridDim.x) {
        if (!a.gradients[i].data) continue;
        const u64 first = a.parameters[i].first, end = i + 1 < a.count ? a.parameters[i + 1].first : a.blocks;
        const double of_parameter = combine(a.of_blocks + first, end - first);
        const double of_measured = combine(a.of_blocks + a.blocks + first, end - first);
        if (threadIdx.x > 0) continue;
        const Rule::Hyper &hyper = a.values[a.groups[i]].hyper;
        const Progress at = progress(a, i);
        const double norm = sqrt(of_parameter), other = sqrt(of_measured);
        double *const kept = Rule::SCALAR ? reinterpret_cast<double *>(a.numbers[i].data) : nullptr;
        const double number = Rule::scalar(hyper, at.t, norm, other, kept ? *kept : 0.0);
        if (kept) *kept = number;
        a.adapted[i] = Rule::coefficients(hyper, at, norm, other, number);
    }
}
