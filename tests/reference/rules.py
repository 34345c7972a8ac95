"""Every update rule in float64, one function each, written from its paper.

A rule is called ``rule(w, g, state, t, **hyper) -> (new_w, new_state)``: t = 1, 2, … is the step being taken, states
start at 0 (``initial_state``), nothing is changed in place. ``REFERENCE`` lists the rules by name, ``STATES`` their
states in order. Switches among the hyperparameters are 0 or 1. ``pipeline_step`` adds what surrounds a rule in a step.

Where a denominator is 0, the adaptive update of that element is 0, whatever stands above the line.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
State = dict[str, Array]
Step = tuple[Array, State]
Rule = Callable[..., Step]

REFERENCE: dict[str, Rule] = {}
STATES: dict[str, tuple[str, ...]] = {}


def rule(*states: str) -> Callable[[Rule], Rule]:
    """Enter a rule under its function's name, with float64 copies for its arguments and without NumPy's warnings."""

    def enter(function: Rule) -> Rule:
        @functools.wraps(function)
        def step(w: ArrayLike, g: ArrayLike, state: Mapping[str, ArrayLike], t: int, **hyper: float) -> Step:
            if set(state) != set(states):
                raise ValueError(f"{function.__name__}: expected states {list(states)}, got {list(state)}")
            copies = {name: np.array(value, np.float64) for name, value in state.items()}
            # Overflow and NaN are values here as they are in the kernels.
            with np.errstate(all="ignore"):
                return function(np.array(w, np.float64), np.array(g, np.float64), copies, t, **hyper)

        REFERENCE[function.__name__] = step
        STATES[function.__name__] = states
        return step

    return enter


def hyperparameters(name: str) -> tuple[str, ...]:
    """Name the hyperparameters of a rule, in the order of its signature."""
    parameters = inspect.signature(REFERENCE[name]).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def initial_state(name: str, w: ArrayLike) -> State:
    """Make the state before step 1: zeros like w."""
    alone = {"novograd": {"v"}}.get(name, set())  # numbers of the whole tensor
    return {state: np.zeros(() if state in alone else np.shape(w)) for state in STATES[name]}


def divide(a: Array, denominator: Array) -> Array:
    """Divide elementwise; 0 where the denominator is 0."""
    zero = denominator == 0
    return np.where(zero, 0.0, a / np.where(zero, 1.0, denominator))


# Gradient descent and its momentums.


@rule()
def sgd(w: Array, g: Array, state: State, t: int, *, lr: float) -> Step:
    """w ← w − γg.

    Source: Robbins and Monro, "A Stochastic Approximation Method", 1951.
    """
    return w - lr * g, {}


@rule("b")
def momentum(
    w: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float,
    momentum: float,
    dampening: float = 0,
    average: int = 0,
    dampen_first: int = 0,
) -> Step:
    """b ← μb + (1−τ)g, undampened at t = 1; w ← w − γb. Averaged: b ← μb + (1−μ)g, at t = 1 as well.

    Source: Polyak, "Some methods of speeding up the convergence of iteration methods", 1964, as written by
    torch.optim.SGD, whose first buffer is g itself; the averaged form is an exponentially weighted average of g.
    With ``dampen_first`` that of t = 1 is dampened too, as mlx.optimizers.SGD has it.
    The first buffer is μb + g also here, which is g from b = 0 and lets a run begin with a buffer of its own.
    """
    if average:
        if dampening:
            raise ValueError("momentum: the averaged form has no dampening")
        b = momentum * state["b"] + (1 - momentum) * g
    elif t == 1 and not dampen_first:
        b = momentum * state["b"] + g
    else:
        b = momentum * state["b"] + (1 - dampening) * g
    return w - lr * b, {"b": b}


@rule("b")
def nesterov(w: Array, g: Array, state: State, t: int, *, lr: float, momentum: float) -> Step:
    """b ← μb + g; w ← w − γ(g + μb).

    Source: Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013, equations 3
    and 4 with the change of variables of Bengio et al. 2012 (equation 7), in the accumulating form of torch.optim.SGD.
    """
    b = momentum * state["b"] + g
    return w - lr * (g + momentum * b), {"b": b}


@rule("v")
def velocity(w: Array, g: Array, state: State, t: int, *, lr: float, momentum: float) -> Step:
    """v ← μv − γg; w ← w + v.

    Source: Sutskever et al. 2013, equations 1 and 2; keras.optimizers.SGD.
    """
    v = momentum * state["v"] - lr * g
    return w + v, {"v": v}


@rule("v")
def velocity_nesterov(w: Array, g: Array, state: State, t: int, *, lr: float, momentum: float) -> Step:
    """v ← μv − γg; w ← w + μv − γg.

    Source: Bengio, Boulanger-Lewandowski and Pascanu, "Advances in Optimizing Recurrent Networks", 2012, equation 7;
    keras.optimizers.SGD(nesterov=True).
    """
    v = momentum * state["v"] - lr * g
    return w + momentum * v - lr * g, {"v": v}


@rule("v")
def velocity_nesterov_chainer(w: Array, g: Array, state: State, t: int, *, lr: float, momentum: float) -> Step:
    """v ← μv − γg; w ← w + μ·μ·v − (1+μ)γg.

    Source: chainer.optimizers.NesterovAG, as its documentation and issue 4274 state it.
    """
    v = momentum * state["v"] - lr * g
    return w + momentum**2 * v - (1 + momentum) * lr * g, {"v": v}


@rule("w_prev")
def heavy_ball(
    w: Array, g: Array, state: State, t: int, *, lr: float, momentum: float, weight_decay: float = 0
) -> Step:
    """w⁺ = (1−γλ)w − γg + μ(w − w⁻), and w⁻ = w at t = 1; the state is the old w.

    Source: Polyak 1964, equation 9. The decay is an argument because the motion w − w⁻ is of undecayed parameters.
    """
    previous = w if t == 1 else state["w_prev"]
    return (1 - lr * weight_decay) * w - lr * g + momentum * (w - previous), {"w_prev": w}


# Adagrad.


@rule("G")
def adagrad(
    w: Array, g: Array, state: State, t: int, *, lr: float, eps: float, initial: float = 0, eps_inside: int = 0
) -> Step:
    """G ← G + g²; w ← w − γg/(√G + ε), or √(G + ε). G begins at ``initial``, which the state lacks until t = 1.

    Source: Duchi, Hazan and Singer, "Adaptive Subgradient Methods", 2011, figure 1 (diagonal), ε outside the root.
    """
    G = (initial if t == 1 else 0) + state["G"] + g * g
    return w - lr * divide(g, root(G, eps, eps_inside)), {"G": G}


@rule("v")
def adagrad_mean(w: Array, g: Array, state: State, t: int, *, lr: float, eps: float) -> Step:
    """v ← v + (g² − v)/t; w ← w − γg/(√v + ε): v is the mean of all g².

    Source: Adagrad with its sum divided by t; the running mean is that of Welford, "Note on a method for calculating
    corrected sums of squares and products", 1962.
    """
    v = state["v"] + (g * g - state["v"]) / t
    return w - lr * divide(g, np.sqrt(v) + eps), {"v": v}


# RMSprop. Hinton, "Neural Networks for Machine Learning", lecture 6e, 2012, slide 29: MeanSquare(w, t) =
# 0.9 MeanSquare(w, t−1) + 0.1 (∂E/∂w)². "Centered" subtracts the squared mean: Graves, "Generating Sequences With
# Recurrent Neural Networks", 2013, equations 38 to 41.


def running(old: Array, new: Array, decay: float, t: int, first_square: int) -> Array:
    """old·β + new·(1−β); with ``first_square`` the first value is taken as it is."""
    if first_square and t == 1:
        return new
    return decay * old + (1 - decay) * new


def root(variance: Array, eps: float, eps_inside: int) -> Array:
    """√variance + ε, or √(variance + ε)."""
    return np.sqrt(variance + eps) if eps_inside else np.sqrt(variance) + eps


@rule("v")
def rmsprop(
    w: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float,
    decay: float,
    eps: float,
    eps_inside: int = 0,
    first_square: int = 0,
) -> Step:
    """v ← βv + (1−β)g²; w ← w − γg/(√v + ε).

    Source: Hinton 2012, lecture 6e, slide 29.
    """
    v = running(state["v"], g * g, decay, t, first_square)
    return w - lr * divide(g, root(v, eps, eps_inside)), {"v": v}


@rule("v", "a")
def rmsprop_centered(
    w: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float,
    decay: float,
    eps: float,
    eps_inside: int = 0,
    first_square: int = 0,
) -> Step:
    """v ← βv + (1−β)g²; a ← βa + (1−β)g; w ← w − γg/(√max(v − a², 0) + ε).

    Source: Graves 2013, equations 38 to 40; the maximum guards against a rounding below 0.
    """
    v = running(state["v"], g * g, decay, t, first_square)
    a = running(state["a"], g, decay, t, first_square)
    variance = np.maximum(v - a * a, 0)
    return w - lr * divide(g, root(variance, eps, eps_inside)), {"v": v, "a": a}


@rule("v", "b")
def rmsprop_momentum(
    w: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float,
    decay: float,
    eps: float,
    momentum: float,
    eps_inside: int = 0,
    first_square: int = 0,
    lr_inside: int = 0,
) -> Step:
    """v ← βv + (1−β)g²; b ← μb + g/(√v + ε); w ← w − γb.

    Source: Hinton 2012, slide 29, under momentum as torch.optim.RMSprop(momentum=μ) has it, or
    with ``lr_inside`` as keras.optimizers.RMSprop and optax.rmsprop: b ← μb + γg/(√v + ε); w ← w − b.
    """
    v = running(state["v"], g * g, decay, t, first_square)
    u = divide(g, root(v, eps, eps_inside))
    b = momentum * state["b"] + (lr * u if lr_inside else u)
    return w - (b if lr_inside else lr * b), {"v": v, "b": b}


@rule("v", "a", "b")
def rmsprop_centered_momentum(
    w: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float,
    decay: float,
    eps: float,
    momentum: float,
    eps_inside: int = 0,
    first_square: int = 0,
    lr_inside: int = 0,
) -> Step:
    """v ← βv + (1−β)g²; a ← βa + (1−β)g; b ← μb + g/(√max(v − a², 0) + ε); w ← w − γb.

    Source: Graves 2013, equations 38 to 41, with the momentum of torch.optim.RMSprop(centered=True).
    """
    v = running(state["v"], g * g, decay, t, first_square)
    a = running(state["a"], g, decay, t, first_square)
    variance = np.maximum(v - a * a, 0)
    u = divide(g, root(variance, eps, eps_inside))
    b = momentum * state["b"] + (lr * u if lr_inside else u)
    return w - (b if lr_inside else lr * b), {"v": v, "a": a, "b": b}


@rule("v", "m")
def rmsprop_momentum_before(
    w: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float,
    decay: float,
    eps: float,
    momentum: float,
    eps_inside: int = 0,
    first_square: int = 0,
) -> Step:
    """v ← βv + (1−β)g²; m ← λm + g; w ← w − γm/(√v + ε).

    Source: Hinton 2012, slide 29, with Polyak's accumulated momentum above the line in place of the gradient.
    """
    v = running(state["v"], g * g, decay, t, first_square)
    m = momentum * state["m"] + g
    return w - lr * divide(m, root(v, eps, eps_inside)), {"v": v, "m": m}


# Adam.


def adam_update(
    m: Array,
    second: Array,
    t: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    bias_correction: int,
    eps_inside: int,
    eps_hat: int,
) -> Array:
    """Kingma and Ba 2015, Algorithm 1's last line, or the line that ends their section 2 (ε-hat)."""
    if eps_hat and eps_inside:
        raise ValueError("adam: eps_hat and eps_inside exclude each other")
    c1 = 1 - beta1**t if bias_correction else 1.0
    c2 = 1 - beta2**t if bias_correction else 1.0
    if eps_hat:
        return lr * np.sqrt(c2) / c1 * divide(m, np.sqrt(second) + eps)
    return lr * divide(m / c1, root(second / c2, eps, eps_inside))


@rule("m", "v")
def adam(
    w: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    bias_correction: int = 1,
    eps_inside: int = 0,
    eps_hat: int = 0,
) -> Step:
    """m ← β₁m + (1−β₁)g; v ← β₂v + (1−β₂)g²; w ← w − γm̂/(√v̂ + ε), m̂ = m/(1−β₁ᵗ), v̂ = v/(1−β₂ᵗ).

    Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015, Algorithm 1. With ``eps_inside``
    w ← w − γm̂/√(v̂ + ε); with ``eps_hat`` w ← w − (γ√(1−β₂ᵗ)/(1−β₁ᵗ)) m/(√v + ε).
    """
    m = beta1 * state["m"] + (1 - beta1) * g
    v = beta2 * state["v"] + (1 - beta2) * (g * g)
    u = adam_update(m, v, t, lr, beta1, beta2, eps, bias_correction, eps_inside, eps_hat)
    return w - u, {"m": m, "v": v}


@rule("m", "v", "v_max")
def adam_amsgrad(
    w: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    bias_correction: int = 1,
    eps_inside: int = 0,
    eps_hat: int = 0,
    max_corrected: int = 0,
) -> Step:
    """As adam, with v̂ = v_max/(1−β₂ᵗ) and v_max ← max(v_max, v).

    Source: Reddi, Kale and Kumar, "On the Convergence of Adam and Beyond", 2018, Algorithm 2, with the maximum of the
    uncorrected v and the bias corrections of torch.optim.Adam(amsgrad=True); with ``max_corrected`` the maximum is that
    of v/(1−β₂ᵗ) itself, as in optax.amsgrad.
    """
    m = beta1 * state["m"] + (1 - beta1) * g
    v = beta2 * state["v"] + (1 - beta2) * (g * g)
    if max_corrected:
        if eps_hat:
            raise ValueError("adam_amsgrad: ε-hat is before the correction, which is then before the maximum")
        c1, c2 = (1 - beta1**t, 1 - beta2**t) if bias_correction else (1, 1)
        v_max = np.maximum(state["v_max"], v / c2)
        return w - lr * divide(m / c1, root(v_max, eps, eps_inside)), {"m": m, "v": v, "v_max": v_max}
    v_max = np.maximum(state["v_max"], v)
    u = adam_update(m, v_max, t, lr, beta1, beta2, eps, bias_correction, eps_inside, eps_hat)
    return w - u, {"m": m, "v": v, "v_max": v_max}


@rule("m")
def lion(w: Array, g: Array, state: State, t: int, *, lr: float, beta1: float, beta2: float) -> Step:
    """u = sign(β₁m + (1−β₁)g); w ← w − γu; m ← β₂m + (1−β₂)g; sign(0) = 0.

    Source: Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023, Algorithm 2.
    """
    u = np.sign(beta1 * state["m"] + (1 - beta1) * g)
    m = beta2 * state["m"] + (1 - beta2) * g
    return w - lr * u, {"m": m}


# Signs.


@rule()
def sign_sgd(w: Array, g: Array, state: State, t: int, *, lr: float) -> Step:
    """w ← w − γ·sign(g).

    Source: Bernstein et al., "signSGD: Compressed Optimisation for Non-Convex Problems", 2018, Algorithm 1.
    """
    return w - lr * np.sign(g), {}


@rule("m")
def signum(w: Array, g: Array, state: State, t: int, *, lr: float, momentum: float) -> Step:
    """m ← βm + (1−β)g; w ← w − γ·sign(m).

    Source: Bernstein et al. 2018, Algorithm 2.
    """
    m = momentum * state["m"] + (1 - momentum) * g
    return w - lr * np.sign(m), {"m": m}


# Relatives of Adam.


def moments(g: Array, state: State, beta1: float, beta2: float) -> tuple[Array, Array]:
    return beta1 * state["m"] + (1 - beta1) * g, beta2 * state["v"] + (1 - beta2) * g**2


@rule("m", "u")
def adamax(
    w: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    bias_correction: int = 1,
    eps_outside: int = 0,
) -> Step:
    """m ← β₁m + (1−β₁)g; u ← max(β₂u, |g| + ε); w ← w − (γ/(1−β₁ᵗ)) m/u.

    Source: Kingma and Ba 2015, Algorithm 2, with the ε of torch.optim.Adamax; with ``eps_outside`` that of
    keras.optimizers.Adamax, u ← max(β₂u, |g|) and m/(u + ε).
    """
    m = beta1 * state["m"] + (1 - beta1) * g
    if bias_correction:
        lr = lr / (1 - beta1**t)
    if eps_outside:
        u = np.maximum(beta2 * state["u"], np.abs(g))
        return w - lr * divide(m, u + eps), {"m": m, "u": u}
    u = np.maximum(beta2 * state["u"], np.abs(g) + eps)
    return w - lr * divide(m, u), {"m": m, "u": u}


@rule("v", "u")
def adadelta(w: Array, g: Array, state: State, t: int, *, lr: float, rho: float, eps: float) -> Step:
    """E[g²] ← ρE[g²] + (1−ρ)g²; Δ = −RMS[Δ]/RMS[g]·g; E[Δ²] ← ρE[Δ²] + (1−ρ)Δ²; w ← w + γΔ; RMS[x] = √(E[x²] + ε).

    Source: Zeiler, "ADADELTA: An Adaptive Learning Rate Method", 2012, Algorithm 1.
    """
    v = rho * state["v"] + (1 - rho) * g**2
    delta = -divide(np.sqrt(state["u"] + eps), np.sqrt(v + eps)) * g
    return w + lr * delta, {"v": v, "u": rho * state["u"] + (1 - rho) * delta**2}


@rule("m", "v")
def nadam(
    w: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    momentum_decay: float,
    constant_momentum: int = 0,
) -> Step:
    """ĝ = g/(1−∏μᵢ); m̂ = m/(1−∏μᵢ·μₜ₊₁); m̄ = (1−μₜ)ĝ + μₜ₊₁m̂; w ← w − γm̄/(√v̂ + ε).

    Source: Dozat, "Incorporating Nesterov Momentum into Adam", 2016, Algorithm 2, with μₜ = β₁(1 − ½·0.96^(ψt)) and m
    by β₁ as in torch.optim.NAdam; with ``constant_momentum`` μₜ = β₁, as in optax.nadam.
    """
    m, v = moments(g, state, beta1, beta2)
    mu = [beta1 * (1 - 0.5 * 0.96 ** (momentum_decay * i)) for i in range(1, t + 2)]
    mu = [beta1] * (t + 1) if constant_momentum else mu
    g_hat = g / (1 - math.prod(mu[:-1]))
    m_hat = m / (1 - math.prod(mu))
    m_bar = (1 - mu[t - 1]) * g_hat + mu[t] * m_hat
    return w - lr * divide(m_bar, np.sqrt(v / (1 - beta2**t)) + eps), {"m": m, "v": v}


@rule("m", "v")
def radam(
    w: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    eps_hat: int = 1,
    from_four: int = 0,
) -> Step:
    """w ← w − γ·r·m̂·√(1−β₂ᵗ)/(√v + ε) if ρ > 5, else w ← w − γm̂.

    Source: Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", 2020, Algorithm 2, with the
    threshold and the ε of torch.optim.RAdam; ``from_four``: the paper's threshold. Without ``eps_hat`` the ε of
    optax.radam, γ·r·m̂/(√v̂ + ε).
    """
    m, v = moments(g, state, beta1, beta2)
    m_hat = m / (1 - beta1**t)
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
    if rho <= (4 if from_four else 5):
        return w - lr * m_hat, {"m": m, "v": v}
    r = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
    if not eps_hat:
        return w - lr * r * divide(m_hat, np.sqrt(v / (1 - beta2**t)) + eps), {"m": m, "v": v}
    return w - lr * r * divide(m_hat * math.sqrt(1 - beta2**t), np.sqrt(v) + eps), {"m": m, "v": v}


@rule("m", "s")
def adabelief(
    w: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    eps_root: float,
) -> Step:
    """m ← β₁m + (1−β₁)g; s ← β₂s + (1−β₂)(g−m)² + ε₀; w ← w − γm̂/(√ŝ + ε); ε₀ = ε in the paper.

    Source: Zhuang et al., "AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients", 2020,
    Algorithm 2.
    """
    m = beta1 * state["m"] + (1 - beta1) * g
    s = beta2 * state["s"] + (1 - beta2) * (g - m) ** 2 + eps_root
    return w - lr * divide(m / (1 - beta1**t), np.sqrt(s / (1 - beta2**t)) + eps), {"m": m, "s": s}


@rule("m", "v")
def yogi(
    w: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    bias_correction: int = 0,
    initial: float = 0,
) -> Step:
    """m ← β₁m + (1−β₁)g; v ← v − (1−β₂)·sign(v − g²)·g²; w ← w − γm/(√v + ε).

    Source: Zaheer et al., "Adaptive Methods for Nonconvex Optimization", 2018, Algorithm 2; with ``bias_correction`` m̂
    and v̂ as in Adam. m and v begin at ``initial``, which the state lacks until t = 1.
    """
    state = {name: value + (initial if t == 1 else 0) for name, value in state.items()}
    m = beta1 * state["m"] + (1 - beta1) * g
    v = state["v"] - (1 - beta2) * np.sign(state["v"] - g**2) * g**2
    c1, c2 = (1 - beta1**t, 1 - beta2**t) if bias_correction else (1, 1)
    return w - lr * divide(m / c1, np.sqrt(v / c2) + eps), {"m": m, "v": v}


@rule("m1", "m2", "v")
def ademamix(
    w: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    beta3: float,
    eps: float,
    alpha: float,
) -> Step:
    """m₁ ← β₁m₁ + (1−β₁)g; m₂ ← β₃m₂ + (1−β₃)g; v ← β₂v + (1−β₂)g²; w ← w − γ(m̂₁ + αm₂)/(√v̂ + ε).

    Source: Pagliardini, Ablin and Grangier, "The AdEMAMix Optimizer: Better, Faster, Older", 2024, Algorithm 1.
    """
    m1 = beta1 * state["m1"] + (1 - beta1) * g
    m2 = beta3 * state["m2"] + (1 - beta3) * g
    v = beta2 * state["v"] + (1 - beta2) * g**2
    update = divide(m1 / (1 - beta1**t) + alpha * m2, np.sqrt(v / (1 - beta2**t)) + eps)
    return w - lr * update, {"m1": m1, "m2": m2, "v": v}


@rule("m", "v")
def adopt(
    w: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    clip: int = 1,
) -> Step:
    """v₀ = g₀²; then m ← β₁m + (1−β₁)·Clip(g/max(√v, ε), c); w ← w − γm; v ← β₂v + (1−β₂)g²; c at t' is t'^¼.

    Source: Taniguchi et al., "ADOPT: Modified Adam Can Converge with Any β₂ with the Optimal Rate", 2024, Algorithm 2,
    or Algorithm 1 without ``clip``; their t' = 0 is t = 1 here, where m only decays.
    """
    if t == 1:
        m = beta1 * state["m"]
        return w - lr * m, {"m": m, "v": g**2}
    normed = divide(g, np.maximum(np.sqrt(state["v"]), eps))
    if clip:
        bound = (t - 1) ** 0.25
        normed = np.clip(normed, -bound, bound)
    m = beta1 * state["m"] + (1 - beta1) * normed
    return w - lr * m, {"m": m, "v": beta2 * state["v"] + (1 - beta2) * g**2}


@rule("m", "v", "n", "g_prev")
def adan(
    w: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    beta3: float,
    eps: float,
    eps_root: float = 0,
    bias_correction: int = 1,
    look_less: int = 0,
) -> Step:
    """m ← β₁m + (1−β₁)g; v ← β₂v + (1−β₂)Δ; n ← β₃n + (1−β₃)(g + β₂Δ)²; w ← w − γ(m̂ + β₂v̂)/(√n̂ + ε); Δ = g − g_prev.

    Source: Xie et al., "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models", 2022,
    Algorithm 1, whose βᵢ are 1 − βᵢ here, with bias corrections and Δ = 0 at t = 1; without ``bias_correction`` as it
    stands there. With ``look_less`` and ε₀ in the root as optax.adan: 1 − β₂ for the β₂ before Δ and v.
    """
    difference = np.zeros_like(g) if t == 1 else g - state["g_prev"]
    look = 1 - beta2 if look_less else beta2
    m = beta1 * state["m"] + (1 - beta1) * g
    v = beta2 * state["v"] + (1 - beta2) * difference
    n = beta3 * state["n"] + (1 - beta3) * (g + look * difference) ** 2
    c1, c2, c3 = (1 - beta**t if bias_correction else 1 for beta in (beta1, beta2, beta3))
    update = divide(m / c1 + look * v / c2, np.sqrt(n / c3 + eps_root) + eps)
    return w - lr * update, {"m": m, "v": v, "n": n, "g_prev": g}


# Signs of change.


@rule("g_prev", "step")
def rprop(
    w: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float,
    eta_minus: float,
    eta_plus: float,
    step_min: float,
    step_max: float,
) -> Step:
    """s grows by η₊ where g·g_prev > 0, shrinks by η₋ where < 0, there g counts as 0; w ← w − s·sign(g).

    Source: Igel and Hüsken, "Improving the Rprop Learning Algorithm", 2000, iRprop⁻. Before t = 1 every s is γ, and
    the state holds 0.
    """
    size = state["step"] + (lr if t == 1 else 0)
    same, changed = np.sign(g) * np.sign(state["g_prev"]) > 0, np.sign(g) * np.sign(state["g_prev"]) < 0
    size = np.where(same, size * eta_plus, np.where(changed, size * eta_minus, size))
    size = np.minimum(np.maximum(size, step_min), step_max)
    g = np.where(changed, 0, g)
    return w - size * np.sign(g), {"g_prev": g, "step": size}


@rule("s", "nu", "x0")
def madgrad(
    w: Array, g: Array, state: State, t: int, *, lr: float, momentum: float, eps: float, weight_decay: float = 0
) -> Step:
    """λ = γ√t; s ← s + λg; ν ← ν + λg²; z = x₀ − s/(∛ν + ε); w ← (1−c)w + cz, c = 1 − μ.

    Decoupled decay is of the old w: (1−γλ)w in its place there; x₀ is where the run began.

    Source: Defazio and Jelassi, "Adaptivity without Compromise", 2021, Algorithm 1, whose k is t − 1.
    """
    x0 = w if t == 1 else state["x0"]
    step = lr * math.sqrt(t)
    s, nu = state["s"] + step * g, state["nu"] + step * g**2
    z = x0 - divide(s, np.cbrt(nu) + eps)
    c = 1 - momentum
    return (1 - c) * (1 - lr * weight_decay) * w + c * z, {"s": s, "nu": nu, "x0": x0}


# Averages of the iterates.


@rule("ax")
def asgd(
    w: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float,
    lambd: float,
    alpha: float,
    t0: float,
    weight_decay: float = 0,
) -> Step:
    """η = γ/(1 + λγ(t−1))^α; w ← w − η(g + λw); a ← a + μ(w − a), μ = 1/max(1, t − 1 − t₀).

    Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992, with the rates of
    torch.optim.ASGD, which are those after the step before.
    """
    eta = lr / (1 + lambd * lr * (t - 1)) ** alpha
    w = (1 - lr * weight_decay) * w
    w = w - eta * g - lambd * eta * w
    mu = 1 / max(1, t - 1 - t0)
    return w, {"ax": w if mu == 1 else state["ax"] + mu * (w - state["ax"])}


def schedule_free(w: Array, direction: Array, d: Array, t: int, lr: float, beta: float, warmup: float) -> tuple:
    """Take a step of equations 3 to 5, of z and x themselves, in more digits than their difference needs."""
    y, d = np.asarray(w, np.longdouble), np.asarray(d, np.longdouble)
    x, z = y - (1 - beta) * d, y + beta * d
    rates = [lr * (min(1.0, i / warmup) if warmup else 1.0) for i in range(1, t + 1)]
    c = np.square(rates[-1] / lr) / np.sum(np.square(np.divide(rates, lr)))
    z = z - rates[-1] * np.asarray(direction, np.longdouble)
    x = (1 - c) * x + c * z
    return np.asarray((1 - beta) * z + beta * x, np.float64), np.asarray(z - x, np.float64)


@rule("d")
def schedule_free_sgd(
    w: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float,
    momentum: float,
    warmup_steps: float,
    weight_decay: float = 0,
) -> Step:
    """z ← z − γₜ(g + λy); x ← (1−c)x + cz; y = (1−β)z + βx; c = γₜ²/Σγᵢ².

    Source: Defazio et al., "The Road Less Scheduled", 2024, equations 3 to 5. The parameter is y, the state z − x.
    """
    y, d = schedule_free(w, g + weight_decay * w, state["d"], t, lr, momentum, warmup_steps)
    return y, {"d": d}


@rule("d", "v")
def schedule_free_adamw(
    w: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    warmup_steps: float,
    weight_decay: float = 0,
) -> Step:
    """v ← β₂v + (1−β₂)g²; z ← z − γₜg/(√v̂ + ε) − γₜλy; x ← (1−c)x + cz; y = (1−β₁)z + β₁x; c = γₜ²/Σγᵢ².

    Source: Defazio et al. 2024, Algorithm 1.
    """
    v = beta2 * state["v"] + (1 - beta2) * g**2
    direction = divide(g, np.sqrt(v / (1 - beta2**t)) + eps) + weight_decay * w
    y, d = schedule_free(w, direction, state["d"], t, lr, beta1, warmup_steps)
    return y, {"d": d, "v": v}


# Norms of whole tensors.


@rule("v")
def lars(
    w: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float,
    momentum: float,
    trust_coefficient: float,
    eps: float = 0,
    weight_decay: float = 0,
    adapt: int = 1,
) -> Step:
    """v ← μv + γλ(g + βw); w ← w − v; λ = η‖w‖/(‖g‖ + β‖w‖), 1 where a norm is 0.

    Source: You, Gitman and Ginsburg, "Large Batch Training of Convolutional Networks", 2017, Algorithm 1, λ as in
    equation 6. ε below the line is not in the paper.
    """
    size, slope = np.linalg.norm(w), np.linalg.norm(g)
    local = 1.0
    if adapt and size > 0 and slope > 0:
        local = trust_coefficient * size / (slope + weight_decay * size + eps)
    v = momentum * state["v"] + lr * local * (g + weight_decay * w)
    return w - v, {"v": v}


@rule("m", "v")
def lamb(
    w: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float = 0,
    adapt: int = 1,
) -> Step:
    """m ← β₁m + (1−β₁)g; v ← β₂v + (1−β₂)g²; r = m̂/(√v̂ + ε); w ← w − γ·‖w‖/‖r + λw‖·(r + λw).

    Source: You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", 2020, Algorithm 2,
    φ(z) = z; the ratio is 1 where a norm is 0.
    """
    m = beta1 * state["m"] + (1 - beta1) * g
    v = beta2 * state["v"] + (1 - beta2) * g**2
    update = divide(m / (1 - beta1**t), np.sqrt(v / (1 - beta2**t)) + eps) + weight_decay * w
    size, length = np.linalg.norm(w), np.linalg.norm(update)
    ratio = size / length if adapt and size > 0 and length > 0 else 1.0
    return w - lr * ratio * update, {"m": m, "v": v}


@rule("m", "v")
def novograd(
    w: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float = 0,
) -> Step:
    """v ← β₂v + (1−β₂)‖g‖², ‖g‖² at first; m ← β₁m + (g/(√v + ε) + λw); w ← w − γm. v is a number.

    Source: Ginsburg et al., "Stochastic Gradient Methods with Layer-wise Adaptive Moments for Training of Deep
    Networks", 2019, Algorithm 1. Its first m lacks ε, which makes no difference that could be seen.
    """
    square = np.sum(np.square(g))
    v = square if t == 1 else beta2 * state["v"] + (1 - beta2) * square
    m = beta1 * state["m"] + divide(g, np.sqrt(v) + eps) + weight_decay * w
    return w - lr * m, {"m": m, "v": np.asarray(v)}


def pipeline_step(
    name: str,
    w: ArrayLike,
    g: ArrayLike,
    state: Mapping[str, ArrayLike],
    t: int,
    hyper: Mapping[str, float],
    weight_decay: float = 0,
    l2: float = 0,
    maximize: bool = False,
    clip_value: float | None = None,
    scale: float | None = None,
    norm_scale: float | None = None,
    decay_after: bool = False,
    decay_implicit: bool = False,
    decay_unscaled: bool = False,
) -> Step:
    """Take a whole step: g·scale, sign → ±clip_value → g·norm_scale → g + l2·w → the rule, with (1−γλ)·(old w).

    Or (1−γλ)·(new w), or (new w)/(1+γλ); λ in the place of γλ if unscaled.

    ``norm_scale`` is ``norms.clip_scale(norm, clip_norm)`` of the norm over all the gradients of the step.
    """
    w = np.array(w, np.float64)
    g = np.array(g, np.float64)
    hyper = dict(hyper)
    with np.errstate(all="ignore"):
        if scale is not None:
            g = g * scale
        if maximize:
            g = -g
        if clip_value is not None:
            g = np.clip(g, -clip_value, clip_value)
        if norm_scale is not None:
            g = g * norm_scale
        if l2:
            g = g + l2 * w
        if weight_decay and "weight_decay" in hyperparameters(name):
            hyper["weight_decay"] = weight_decay
        elif weight_decay:
            share = weight_decay * (1 if decay_unscaled else hyper["lr"])
            if decay_after or decay_implicit:
                w, state = REFERENCE[name](w, g, state, t, **hyper)
                return w / (1 + share) if decay_implicit else w - share * w, state
            # The others use w only as what their update is subtracted from.
            w = (1 - share) * w
    return REFERENCE[name](w, g, state, t, **hyper)
