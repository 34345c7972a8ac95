"""The readable specification: what a step computes, rounding by rounding, in NumPy.

Every rule is one short function ``rule(w, g, *states, t, **hyper) -> (step, *states)`` over whole arrays of the compute
dtype; the new w is w − step. Coefficients are Python floats, rounded once to that dtype (``rounded``); then each NumPy
operation rounds once, in the order it is written. ``step`` adds what surrounds a rule. The kernels equal all of it byte
for byte; any NaN equals any NaN. Nothing here is shared with the kernels, nor with ``tests.reference``, which says what
is right, not how it rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.reference.tree import Norm, norm_tensors

Array = NDArray[Any]
Update = tuple[Array, ...]


def compute_dtype(dtype: Any) -> np.dtype[Any]:
    """float64 for float64, else float32."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def rounded(w: Array, *coefficients: float) -> list[Any]:
    """Round each coefficient once, to the dtype of ``w``."""
    return [w.dtype.type(c) for c in coefficients]


def power(base: float, t: int) -> float:
    """baseᵗ by repeated squaring, the lowest bit of t first."""
    result = 1.0
    while t:
        if t & 1:
            result *= base
        base *= base
        t >>= 1
    return result


class Progress(int):
    """t, the number of an update, where numbers whose products correct biases may have changed.

    Of each: what it was in the first updates, how many these are, and the product over the others, in their order.
    """

    past: Mapping[str, tuple[float, int, float]] = {}

    def next(self, values: Mapping[str, float]) -> Progress:
        """The next update, by these numbers."""
        made = Progress(self + 1)
        made.past = {}
        for name, value in values.items():
            base, constant, rest = self.past.get(name, (value, 0, 1.0))
            same = constant == self and base == value
            factor = 1.0 - 0.5 * raised(0.96, value * float(made)) if name == "momentum_decay" else value
            made.past[name] = (base, constant + 1, rest) if same else (base, constant, rest * factor)
        return made


def product(name: str, value: float, t: int) -> float:
    """The product of a number over all updates: its power, unless `Progress` says that it has changed."""
    base, constant, rest = getattr(t, "past", {}).get(name, (value, t, 1.0))
    return power(base, constant) * rest


def divide_or_zero(a: Array, denominator: Array) -> Array:
    """+0 where the denominator is 0, whatever stands above it."""
    return np.where(denominator == 0, a.dtype.type(0), a / denominator)


#: The largest finite numbers.
LARGEST = {np.dtype(dtype): np.finfo(dtype).max for dtype in (np.float32, np.float64)}


def capped(v: Array) -> Array:
    """The largest finite number in the place of ∞."""
    v = np.asarray(v)
    return np.where(v > LARGEST[v.dtype], LARGEST[v.dtype], v)


def smaller(a: Array, b: Array) -> Array:
    """min(a, b) = a if a < b or a ≠ a, else b; so NaN if one is NaN, and b of two equal zeros."""
    return np.where((a < b) | (a != a), a, b)


def larger(a: Array, b: Array) -> Array:
    """max(a, b) = a if a > b or a ≠ a, else b."""
    return np.where((a > b) | (a != a), a, b)


def sign(a: Array) -> Array:
    """−1, +0 or 1; NaN for NaN."""
    return np.where(a != a, a, (a > 0).astype(a.dtype) - (a < 0).astype(a.dtype))


# Gradient descent and its momentums.


def sgd(w: Array, g: Array, *, t: int, lr: float) -> Update:
    (lr,) = rounded(w, lr)
    return (lr * g,)


def momentum(
    w: Array,
    g: Array,
    b: Array,
    *,
    t: int,
    lr: float,
    momentum: float,
    dampening: float,
    average: float,
    dampen_first: float = 0.0,
) -> Update:
    gain = 1.0 - momentum if average else 1.0 if t == 1 and not dampen_first else 1.0 - dampening
    lr, momentum, gain = rounded(w, lr, momentum, gain)
    b = momentum * b + gain * g
    return lr * b, b


def nesterov(w: Array, g: Array, b: Array, *, t: int, lr: float, momentum: float) -> Update:
    lr, momentum = rounded(w, lr, momentum)
    b = momentum * b + g
    return lr * (g + momentum * b), b


def velocity(w: Array, g: Array, v: Array, *, t: int, lr: float, momentum: float) -> Update:
    lr, momentum = rounded(w, lr, momentum)
    v = momentum * v - lr * g
    return -v, v


def velocity_nesterov(w: Array, g: Array, v: Array, *, t: int, lr: float, momentum: float) -> Update:
    lr, momentum = rounded(w, lr, momentum)
    v = momentum * v - lr * g
    return -(momentum * v - lr * g), v


def velocity_nesterov_chainer(w: Array, g: Array, v: Array, *, t: int, lr: float, momentum: float) -> Update:
    lr, momentum, of_v, of_g = rounded(w, lr, momentum, momentum * momentum, 1.0 + momentum)
    v = momentum * v - lr * g
    return -(of_v * v - of_g * (lr * g)), v


def heavy_ball(w: Array, g: Array, previous: Array, *, t: int, lr: float, momentum: float) -> Update:
    lr, momentum = rounded(w, lr, 0.0 if t == 1 else momentum)
    return lr * g - momentum * (w - previous), w


# Adagrad.


def adagrad(
    w: Array,
    g: Array,
    v: Array,
    *,
    t: int,
    lr: float,
    eps: float,
    initial: float = 0.0,
    eps_inside: float = 0.0,
) -> Update:
    lr, start = rounded(w, lr, initial if t == 1 else 0.0)
    v = capped(v + start + g * g)
    return lr * divide_or_zero(g, root(v, eps, eps_inside)), v


def unless_nan(a: Array, b: Array) -> Array:
    """∞ − ∞, of an infinite state of an older file."""
    return np.where(a == a, a, b)


def adagrad_mean(w: Array, g: Array, v: Array, *, t: int, lr: float, eps: float) -> Update:
    lr, eps, count = rounded(w, lr, eps, float(t))
    v = capped(unless_nan(v + (g * g - v) / count, v + g * g))
    return lr * divide_or_zero(g, np.sqrt(v) + eps), v


# RMSprop and Adam: ε stands inside or outside the root, and the other place adds 0.


def running(w: Array, old: Array, new: Array, t: int, decay: float, first_square: float) -> Array:
    decay = 0.0 if first_square and t == 1 else decay
    decay, rest = rounded(w, decay, 1.0 - decay)
    return decay * old + rest * new


def root(v: Array, eps: float, eps_inside: float) -> Array:
    inside, outside = rounded(v, *((eps, 0.0) if eps_inside else (0.0, eps)))
    return np.sqrt(v + inside) + outside


def rmsprop(
    w: Array, g: Array, v: Array, *, t: int, lr: float, decay: float, eps: float, eps_inside: float, first_square: float
) -> Update:
    v = capped(running(w, v, g * g, t, decay, first_square))
    (lr,) = rounded(w, lr)
    return lr * divide_or_zero(g, root(v, eps, eps_inside)), v


def deviation(v: Array, a: Array, eps: float, eps_inside: float) -> Array:
    square = a * a
    return root(larger(np.where(square > LARGEST[v.dtype], v, v - square), np.zeros_like(v)), eps, eps_inside)


def rmsprop_centered(
    w: Array,
    g: Array,
    v: Array,
    a: Array,
    *,
    t: int,
    lr: float,
    decay: float,
    eps: float,
    eps_inside: float,
    first_square: float,
) -> Update:
    v = capped(running(w, v, g * g, t, decay, first_square))
    a = running(w, a, g, t, decay, first_square)
    (lr,) = rounded(w, lr)
    return lr * divide_or_zero(g, deviation(v, a, eps, eps_inside)), v, a


def rmsprop_momentum(
    w: Array,
    g: Array,
    v: Array,
    b: Array,
    *,
    t: int,
    lr: float,
    decay: float,
    eps: float,
    eps_inside: float,
    first_square: float,
    momentum: float,
    lr_inside: float = 0.0,
) -> Update:
    v = capped(running(w, v, g * g, t, decay, first_square))
    inner, lr, momentum = rounded(w, *((lr, 1.0) if lr_inside else (1.0, lr)), momentum)
    b = momentum * b + inner * divide_or_zero(g, root(v, eps, eps_inside))
    return lr * b, v, b


def rmsprop_centered_momentum(
    w: Array,
    g: Array,
    v: Array,
    a: Array,
    b: Array,
    *,
    t: int,
    lr: float,
    decay: float,
    eps: float,
    eps_inside: float,
    first_square: float,
    momentum: float,
    lr_inside: float = 0.0,
) -> Update:
    v = capped(running(w, v, g * g, t, decay, first_square))
    a = running(w, a, g, t, decay, first_square)
    inner, lr, momentum = rounded(w, *((lr, 1.0) if lr_inside else (1.0, lr)), momentum)
    b = momentum * b + inner * divide_or_zero(g, deviation(v, a, eps, eps_inside))
    return lr * b, v, a, b


def rmsprop_momentum_before(
    w: Array,
    g: Array,
    v: Array,
    m: Array,
    *,
    t: int,
    lr: float,
    decay: float,
    eps: float,
    eps_inside: float,
    first_square: float,
    momentum: float,
) -> Update:
    v = capped(running(w, v, g * g, t, decay, first_square))
    lr, momentum = rounded(w, lr, momentum)
    m = momentum * m + g
    return lr * divide_or_zero(m, root(v, eps, eps_inside)), v, m


def adam_update(
    m: Array,
    second: Array,
    t: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    bias_correction: float,
    eps_inside: float,
    eps_hat: float,
) -> Array:
    """γ√c₂/c₁ · m/(√v + ε√c₂), or m/√(v + εc₂), or with ε-hat m/(√v + ε); cᵢ = 1 − βᵢᵗ, or 1 uncorrected."""
    c1 = 1.0 - product("beta1", beta1, t) if bias_correction else 1.0
    c2 = 1.0 - product("beta2", beta2, t) if bias_correction else 1.0
    (rate,) = rounded(m, lr * math.sqrt(c2) / c1)
    eps = eps * c2 if eps_inside else eps if eps_hat else eps * math.sqrt(c2)
    return rate * divide_or_zero(m, root(second, eps, eps_inside))


def adam(
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    t: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    bias_correction: float,
    eps_inside: float,
    eps_hat: float,
) -> Update:
    m = running(w, m, g, t, beta1, False)
    v = capped(running(w, v, g * g, t, beta2, False))
    return adam_update(m, v, t, lr, beta1, beta2, eps, bias_correction, eps_inside, eps_hat), m, v


def adam_amsgrad(
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    v_max: Array,
    *,
    t: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    bias_correction: float,
    eps_inside: float,
    eps_hat: float,
    max_corrected: float = 0.0,
) -> Update:
    m = running(w, m, g, t, beta1, False)
    v = capped(running(w, v, g * g, t, beta2, False))
    if not max_corrected:
        v_max = larger(v_max, v)
        return adam_update(m, v_max, t, lr, beta1, beta2, eps, bias_correction, eps_inside, eps_hat), m, v, v_max
    c1, c2 = (1.0 - product("beta1", beta1, t), 1.0 - product("beta2", beta2, t)) if bias_correction else (1.0, 1.0)
    rate, correction = rounded(w, lr / c1, 1.0 / c2)
    v_max = larger(v_max, capped(correction * v))
    return rate * divide_or_zero(m, root(v_max, eps, eps_inside)), m, v, v_max


def lion(w: Array, g: Array, m: Array, *, t: int, lr: float, beta1: float, beta2: float) -> Update:
    direction = sign(running(w, m, g, t, beta1, False))
    (lr,) = rounded(w, lr)
    return lr * direction, running(w, m, g, t, beta2, False)


# Signs.


def sign_sgd(w: Array, g: Array, *, t: int, lr: float) -> Update:
    (lr,) = rounded(w, lr)
    return (lr * sign(g),)


def signum(w: Array, g: Array, m: Array, *, t: int, lr: float, momentum: float) -> Update:
    m = running(w, m, g, t, momentum, False)
    (lr,) = rounded(w, lr)
    return lr * sign(m), m


# Relatives of Adam.


def adamax(
    w: Array,
    g: Array,
    m: Array,
    u: Array,
    *,
    t: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    bias_correction: float = 1.0,
    eps_outside: float = 0.0,
) -> Update:
    m = running(w, m, g, t, beta1, False)
    c1 = 1.0 - product("beta1", beta1, t) if bias_correction else 1.0
    rate, beta2, inside, outside = rounded(w, lr / c1, beta2, *((0.0, eps) if eps_outside else (eps, 0.0)))
    u = larger(beta2 * u, np.abs(g) + inside)
    return rate * divide_or_zero(m, u + outside), m, u


def adadelta(w: Array, g: Array, v: Array, u: Array, *, t: int, lr: float, rho: float, eps: float) -> Update:
    v = capped(running(w, v, g * g, t, rho, False))
    lr, eps = rounded(w, lr, eps)
    d = divide_or_zero(np.sqrt(u + eps), np.sqrt(v + eps)) * g
    return lr * d, v, capped(running(w, u, d * d, t, rho, False))


def raised(base: float, exponent: float) -> float:
    """base^exponent: its whole part by squaring, then a square root for each bit of the rest."""
    whole = int(min(exponent, 2.0**53))
    result, root = power(base, whole), base
    rest = exponent - whole if exponent < 2.0**53 else 0.0
    while rest:
        root = math.sqrt(root)
        rest *= 2
        if rest >= 1:
            result *= root
            rest -= 1
    return result


def warming_product(beta: float, q: float, t: int) -> float:
    """∏ β(1 − qⁱ/2) for i = 1 … t, in order; 0 below 2⁻⁵⁴; where qⁱ is below 2⁻⁵⁴, powers of β are left."""
    result = past = 1.0
    for i in range(t):
        past *= q
        if past < 2.0**-54:
            return result * power(beta, t - i)
        result *= beta * (1.0 - 0.5 * past)
        if result < 2.0**-54:
            return 0.0
    return result


def product_of_mu(beta1: float, momentum_decay: float, t: int) -> float:
    """That of β₁, times that of what momentum has warmed up to; both in one while both are constant."""
    past = getattr(t, "past", {})
    if all(constant == t for _, constant, _ in past.values()):
        return warming_product(beta1, raised(0.96, momentum_decay), t)
    decay, constant, rest = past["momentum_decay"]
    return product("beta1", beta1, t) * (warming_product(1.0, raised(0.96, decay), constant) * rest)


def nadam(
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    t: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    momentum_decay: float,
    constant_momentum: float = 0.0,
) -> Update:
    m = running(w, m, g, t, beta1, False)
    v = capped(running(w, v, g * g, t, beta2, False))
    now, after = (beta1 * (1.0 - 0.5 * raised(0.96, momentum_decay * (float(t) + i))) for i in (0.0, 1.0))
    if constant_momentum:
        now = after = beta1
    past = product("beta1", beta1, t) if constant_momentum else product_of_mu(beta1, momentum_decay, t)
    root2 = math.sqrt(1.0 - product("beta2", beta2, t))
    rate = lr * root2
    of_g, of_m, eps = rounded(w, rate * (1.0 - now) / (1.0 - past), rate * after / (1.0 - past * after), eps * root2)
    return divide_or_zero(of_g * g + of_m * m, np.sqrt(v) + eps), m, v


def radam(
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    t: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    eps_hat: float = 1.0,
    from_four: float = 0.0,
) -> Update:
    m = running(w, m, g, t, beta1, False)
    v = capped(running(w, v, g * g, t, beta2, False))
    past, c1 = product("beta2", beta2, t), 1.0 - product("beta1", beta1, t)
    c2 = 1.0 - past
    limit = 2.0 / (1.0 - beta2) - 1.0
    rho = limit - 2.0 * float(t) * past / c2
    if not rho > (4.0 if from_four else 5.0):
        (rate,) = rounded(w, lr / c1)
        return rate * m, m, v
    r = math.sqrt((rho - 4.0) * (rho - 2.0) * limit / ((limit - 4.0) * (limit - 2.0) * rho))
    rate, eps = rounded(w, lr * r * math.sqrt(c2) / c1, eps if eps_hat else eps * math.sqrt(c2))
    return rate * divide_or_zero(m, np.sqrt(v) + eps), m, v


def rprop(
    w: Array,
    g: Array,
    previous: Array,
    s: Array,
    *,
    t: int,
    lr: float,
    eta_minus: float,
    eta_plus: float,
    step_min: float,
    step_max: float,
) -> Update:
    start, eta_minus, eta_plus, step_min, step_max = rounded(
        w, lr if t == 1 else 0.0, eta_minus, eta_plus, step_min, step_max
    )
    agreement = sign(g) * sign(previous)
    one = w.dtype.type(1)
    factor = np.where(agreement > 0, eta_plus, np.where(agreement < 0, eta_minus, one))
    s = smaller(larger((s + start) * factor, step_min), step_max)
    g = np.where(agreement < 0, w.dtype.type(0), g)
    return s * sign(g), g, s


def adabelief(
    w: Array,
    g: Array,
    m: Array,
    s: Array,
    *,
    t: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    eps_root: float,
) -> Update:
    m = running(w, m, g, t, beta1, False)
    root2 = math.sqrt(1.0 - product("beta2", beta2, t))
    rate, inside, outside = rounded(w, lr * root2 / (1.0 - product("beta1", beta1, t)), eps_root, eps * root2)
    s = capped(running(w, s, (g - m) * (g - m), t, beta2, False) + inside)
    return rate * divide_or_zero(m, np.sqrt(s) + outside), m, s


def yogi(
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    t: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    bias_correction: float,
    initial: float = 0.0,
) -> Update:
    (start,) = rounded(w, initial if t == 1 else 0.0)
    m, v = m + start, v + start
    m = running(w, m, g, t, beta1, False)
    c1 = 1.0 - product("beta1", beta1, t) if bias_correction else 1.0
    root2 = math.sqrt(1.0 - product("beta2", beta2, t)) if bias_correction else 1.0
    rate, rest, eps = rounded(w, lr * root2 / c1, 1.0 - beta2, eps * root2)
    v = capped(unless_nan(v - rest * (sign(v - g * g) * (g * g)), v + g * g))
    return rate * divide_or_zero(m, np.sqrt(v) + eps), m, v


def ademamix(
    w: Array,
    g: Array,
    m: Array,
    n: Array,
    v: Array,
    *,
    t: int,
    lr: float,
    beta1: float,
    beta2: float,
    beta3: float,
    eps: float,
    alpha: float,
) -> Update:
    m = running(w, m, g, t, beta1, False)
    n = running(w, n, g, t, beta3, False)
    v = capped(running(w, v, g * g, t, beta2, False))
    root2 = math.sqrt(1.0 - product("beta2", beta2, t))
    fast, slow, eps = rounded(w, lr * root2 / (1.0 - product("beta1", beta1, t)), lr * root2 * alpha, eps * root2)
    return divide_or_zero(fast * m + slow * n, np.sqrt(v) + eps), m, n, v


def adopt(
    w: Array, g: Array, m: Array, v: Array, *, t: int, lr: float, beta1: float, beta2: float, eps: float, clip: float
) -> Update:
    limit = 0.0 if t == 1 else math.sqrt(math.sqrt(float(t) - 1.0)) if clip else float(np.finfo(np.float64).max)
    lr, eps, limit = rounded(w, lr, eps, limit)
    n = smaller(larger(divide_or_zero(g, larger(np.sqrt(v), eps)), -limit), limit)
    m = running(w, m, n, t, beta1, False)
    return lr * m, m, capped(running(w, v, g * g, t, beta2, True))


def adan(
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    n: Array,
    previous: Array,
    *,
    t: int,
    lr: float,
    beta1: float,
    beta2: float,
    beta3: float,
    eps: float,
    eps_root: float = 0.0,
    bias_correction: float = 1.0,
    look_less: float = 0.0,
) -> Update:
    share = 1.0 - beta2 if look_less else beta2
    past, of_d, ahead = rounded(w, beta2, *((0.0, 0.0) if t == 1 else (1.0 - beta2, share)))
    d = g - previous
    m = running(w, m, g, t, beta1, False)
    v = past * v + of_d * d
    look = g + ahead * d
    n = capped(running(w, n, look * look, t, beta3, False))
    c1, c2, c3 = (
        1.0 - product(f"beta{i + 1}", beta, t) if bias_correction else 1.0
        for i, beta in enumerate((beta1, beta2, beta3))
    )
    rate = lr * math.sqrt(c3)
    of_m, of_v, inside, eps = rounded(w, rate / c1, rate * share / c2, eps_root * c3, eps * math.sqrt(c3))
    return divide_or_zero(of_m * m + of_v * v, np.sqrt(n + inside) + eps), m, v, n, g


# Averages of the iterates.


def asgd(
    w: Array, g: Array, average: Array, *, t: int, lr: float, lambd: float, alpha: float, t0: float, weight_decay: float
) -> Update:
    before = float(t) - 1.0
    eta = lr / raised(1.0 + lambd * lr * before, alpha)
    own, common = lambd * eta, lr * weight_decay
    rate, decay, weight = rounded(w, eta, own + common - own * common, 1.0 / max(before - t0, 1.0))
    step = decay * w + rate * g
    w = w - step
    return step, w if weight == 1 else average + weight * (w - average)


def schedule_free(w: Array, step: Array, d: Array, t: int, beta: float, warmup_steps: float) -> tuple[Array, Array]:
    """(1−β)u − βc(d − u) and (1−c)(d − u), u the step of z."""
    count = float(t)
    c = 1.0 / count
    if warmup_steps:
        risen = min(count, warmup_steps)
        c = risen * risen / squares(risen, count, warmup_steps)
    near, weight, rest = rounded(w, 1.0 - beta, beta * c, 1.0 - c)
    e = d - step
    return near * step - weight * e, rest * e


def squares(risen: float, count: float, warmup_steps: float) -> float:
    """1² + … + T² and T² for each update after T."""
    return risen * (risen + 1.0) * (2.0 * risen + 1.0) / 6.0 + (count - risen) * warmup_steps * warmup_steps


def warm_rate(lr: float, t: int, warmup_steps: float) -> float:
    return lr * min(float(t), warmup_steps) / warmup_steps if warmup_steps else lr


def schedule_free_sgd(
    w: Array,
    g: Array,
    d: Array,
    *,
    t: int,
    lr: float,
    momentum: float,
    warmup_steps: float,
    weight_decay: float,
) -> Update:
    gamma = warm_rate(lr, t, warmup_steps)
    rate, decay = rounded(w, gamma, gamma * weight_decay)
    return schedule_free(w, rate * g + decay * w, d, t, momentum, warmup_steps)


def schedule_free_adamw(
    w: Array,
    g: Array,
    d: Array,
    v: Array,
    *,
    t: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    warmup_steps: float,
    weight_decay: float,
) -> Update:
    v = capped(running(w, v, g * g, t, beta2, False))
    gamma, root2 = warm_rate(lr, t, warmup_steps), math.sqrt(1.0 - product("beta2", beta2, t))
    rate, decay, eps = rounded(w, gamma * root2, gamma * weight_decay, eps * root2)
    step = rate * divide_or_zero(g, np.sqrt(v) + eps) + decay * w
    step, d = schedule_free(w, step, d, t, beta1, warmup_steps)
    return step, d, v


# Rules with norms of the whole tensor, by the canonical tree, in float64.


def tensor_norm(x: Array) -> float:
    return float(norm_tensors([x]))


def one_if_one_is_0(w: float, other: float, ratio: Callable[[], float]) -> float:
    return 1.0 if 0.0 in (w, other) and w == w and other == other else ratio()


def quotient(a: float, b: float) -> float:
    return float(np.float64(a) / np.float64(b))


def lars(
    w: Array,
    g: Array,
    v: Array,
    *,
    t: int,
    lr: float,
    momentum: float,
    trust_coefficient: float,
    eps: float,
    weight_decay: float,
    adapt: float,
) -> Update:
    of_w, of_g = norm_tensors([w]), norm_tensors([g])

    def rated(unit: int) -> list[Any]:
        """The rate, and the decay, of gradients that are multiplied by 2^-unit."""
        decay, length = np.ldexp(weight_decay, -unit), Norm(of_g.root, of_g.power - unit)
        below = np.float64(length) + decay * of_w + np.ldexp(eps, -unit)
        ratio = one_if_one_is_0(of_w, length, lambda: quotient(trust_coefficient * of_w, below)) if adapt else 1.0
        return rounded(w, lr * ratio, decay)

    def normal(rate: Any) -> bool:
        return bool(np.finfo(w.dtype).tiny <= rate < np.inf)

    rate, decay = rated(0)
    if not normal(rate) and rate == rate and of_w.root > 0.0 and of_g.root > 0.0:
        # In another unit the ratio of the norms may be a normal number.
        step = (400 if w.dtype == np.float64 else 64) * (1 if rate < 1 else -1)
        for unit in range(step, 7 * step, step):
            if normal(rated(unit)[0]):
                rate, decay = rated(unit)
                g = np.ldexp(g, -unit)
                break
    (momentum,) = rounded(w, momentum)
    v = momentum * v + rate * (g + decay * w)
    return v, v


def lamb(
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    t: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    adapt: float,
) -> Update:
    m = running(w, m, g, t, beta1, False)
    v = capped(running(w, v, g * g, t, beta2, False))
    root2 = math.sqrt(1.0 - product("beta2", beta2, t))
    scale, eps, decay = rounded(w, root2 / (1.0 - product("beta1", beta1, t)), eps * root2, weight_decay)
    u = scale * divide_or_zero(m, np.sqrt(v) + eps) + decay * w
    of_w, of_u = tensor_norm(w), tensor_norm(u)
    ratio = one_if_one_is_0(of_w, of_u, lambda: quotient(of_w, of_u)) if adapt else 1.0
    (rate,) = rounded(w, lr * ratio)
    return rate * u, m, v


def novograd(
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    t: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> Update:
    square = np.float64(tensor_norm(g)) * tensor_norm(g)
    v = capped(square if t == 1 else beta2 * v + (1.0 - beta2) * square)
    lr, beta1, below, decay = rounded(w, lr, beta1, np.sqrt(v) + eps, weight_decay)
    m = beta1 * m + (divide_or_zero(g, below) + decay * w)
    return lr * m, m, np.asarray(v)


def cube_root(v: Array) -> Array:
    """Multiply roots of 4 to come near, then take five steps of Newton's; 0 and ∞ are their own."""
    (third,) = rounded(v, 1.0 / 3.0)
    root = np.sqrt(np.sqrt(v))
    y = root
    for _ in range(4):
        root = np.sqrt(np.sqrt(root))
        y = y * root
    for _ in range(5):
        y = y - (y - v / (y * y)) * third
    return np.where(v == v + v, v, y)


def madgrad(
    w: Array,
    g: Array,
    s: Array,
    v: Array,
    x0: Array,
    *,
    t: int,
    lr: float,
    momentum: float,
    eps: float,
    weight_decay: float,
) -> Update:
    rate, rest, eps = rounded(w, lr * math.sqrt(float(t)), 1.0 - momentum, eps)
    (of_past,) = rounded(w, momentum * (lr * weight_decay))
    x0 = w if t == 1 else x0
    s, v = s + rate * g, capped(v + rate * (g * g))
    behind = (w - x0) + divide_or_zero(s, cube_root(v) + eps)
    return of_past * w + rest * behind, s, v, x0


#: Rules that take the decay themselves, since a norm, an average or a state depends on it.
DECAYING = {"asgd", "madgrad", "schedule_free_sgd", "schedule_free_adamw", "lars", "lamb", "novograd"}

SPECIFICATION: dict[str, Callable[..., Update]] = {
    rule.__name__: rule
    for rule in (
        sgd,
        momentum,
        nesterov,
        velocity,
        velocity_nesterov,
        velocity_nesterov_chainer,
        heavy_ball,
        adagrad,
        adagrad_mean,
        rmsprop,
        rmsprop_centered,
        rmsprop_momentum,
        rmsprop_centered_momentum,
        rmsprop_momentum_before,
        adam,
        adam_amsgrad,
        lion,
        sign_sgd,
        signum,
        adamax,
        adadelta,
        nadam,
        radam,
        rprop,
        adabelief,
        yogi,
        ademamix,
        adopt,
        adan,
        asgd,
        schedule_free_sgd,
        schedule_free_adamw,
        lars,
        lamb,
        novograd,
        madgrad,
    )
}


# What surrounds a rule.


def unscaled(g: Array, grad_scale: float | None) -> Array:
    """Multiply by 1/grad_scale, in the compute dtype."""
    g = g.astype(compute_dtype(g.dtype))
    return g if grad_scale is None else g * g.dtype.type(1.0 / grad_scale)


def clipped(g: Array, clip_value: float | None) -> Array:
    """Cut off at ±clip_value, in the compute dtype; NaN stays."""
    g = g.astype(compute_dtype(g.dtype))
    if clip_value is None:
        return g
    (clip,) = rounded(g, clip_value)
    return smaller(larger(g, -clip), clip)


def global_norm(gradients: Sequence[Array | None], clip_value: float | None = None) -> Norm:
    """The norm of the gradients after clipping by value; one that is None keeps its place, as a sum of 0."""
    with np.errstate(all="ignore"):
        return norm_tensors([np.zeros(0) if g is None else clipped(g, clip_value) for g in gradients])


class Clip(NamedTuple):
    """What clipping multiplies by: fraction·2^power, 1 ≤ fraction < 2 if it is a finite number above 0."""

    fraction: float
    power: int

    def applied(self, g: Array, grad_scale: float | None = None) -> Array:
        """Multiply by 2^-j, then by fraction·2^(power + j), which that makes a normal number: j is mostly 0.

        2^-j times 1/grad_scale is a normal number, too.
        """
        least = int(np.finfo(g.dtype).minexp)
        most = max(0, (0 if grad_scale is None else math.frexp(1.0 / grad_scale)[1] - 1) - least)
        j = min(max(0, least - self.power), most)
        with np.errstate(all="ignore"):
            return np.ldexp(g, -j) * g.dtype.type(np.ldexp(np.float64(self.fraction), self.power + j))


def norm_scale(norm: float, clip_norm: float | None, clip_eps: float = 0.0) -> Clip | None:
    """What clipping by norm multiplies by, in float64; None: it does not."""
    return None if clip_norm is None else quotient_or_none(Norm(clip_norm), norm, clip_eps)


def quotient_or_none(limit: Norm, norm: float, eps: float = 0.0) -> Clip | None:
    """limit/(norm + eps), unless it is 1 or more."""
    norm = norm if isinstance(norm, Norm) else Norm(norm)
    root, power, length = norm.root, norm.power, float(norm) + eps
    both = limit.root < math.inf and root < math.inf and math.inf == length == float(limit)
    if length <= float(limit) and not both:
        return None
    if limit.root == 0.0 or not (limit.root < math.inf and root < math.inf):
        with np.errstate(all="ignore"):
            return Clip(float(np.float64(float(limit)) / length), 0)
    # What overflows is root·2^power.
    below, shift = (length, 0) if length < math.inf else (root + float(np.ldexp(eps, -power)), power)
    (above, up), (below, down) = math.frexp(limit.root), math.frexp(below)
    fraction, power = above / below, up + limit.power - down - shift
    fraction, power = (2.0 * fraction, power - 1) if fraction < 1.0 else (fraction, power)
    return None if both and power >= 0 else Clip(fraction, power)


def step(
    rule: str,
    w: Array,
    g: Array,
    states: Sequence[Array],
    *,
    t: int,
    hyper: Mapping[str, float],
    weight_decay: float = 0.0,
    l2: float = 0.0,
    maximize: float = False,
    clip_value: float | None = None,
    scale: Clip | None = None,
    after: Mapping[str, Any] | None = None,
    kept: dict[str, Array] | None = None,
    grad_scale: float | None = None,
    decay_after: float = False,
    decay_implicit: float = False,
    decay_unscaled: float = False,
) -> tuple[Array, list[Array]]:
    """One step: unscale → sign → clip by value and norm → l2 → rule → w − its step → what follows it → store.

    Decoupled decay is added to the step before it is subtracted: γλ·w, or a part of the new w.

    ``scale`` is ``norm_scale`` of the norm over all unscaled gradients. A stage that is off is left out. ``kept`` has
    the arrays that ``after`` keeps, by name, and is changed.
    """
    after, kept = after or {}, {} if kept is None else kept
    with np.errstate(all="ignore"):
        old = w.astype(compute_dtype(w.dtype))
        if "master" in kept:
            same = bits(kept["master"].astype(w.dtype)) == bits(w)
            old = np.where(same, kept["master"], old)
        begin = old
        g = unscaled(g.astype(old.dtype), grad_scale)
        if maximize:
            g = -g
        g = clipped(g, clip_value)
        if scale is not None:
            g = scale.applied(g, grad_scale)
        if l2:
            g = g + old.dtype.type(l2) * old
        hyper = dict(hyper)
        part = weight_decay if decay_unscaled else hyper["lr"] * weight_decay
        if rule in DECAYING:
            hyper["weight_decay"], part = weight_decay, 0.0
        step, *new_states = SPECIFICATION[rule](old, g, *states, t=t, **hyper)
        if part:
            decay, whole = rounded(old, part, 1.0 + part)
            if decay_implicit:
                step = (step + decay * old) / whole
            else:
                step = step + decay * (old - step) if decay_after else decay * old + step
        new = old - step
        if lookahead := after.get("lookahead"):
            if t % lookahead.k == 1 or lookahead.k == 1:
                kept["slow"] = begin
            if t % lookahead.k == 0:
                new = moved(kept["slow"], new, lookahead.alpha)
        if average := after.get("average"):
            n, rest = divmod(t - average.start, average.every)
            if n >= 1 and rest == 0:
                (c,) = rounded(new, new_point(average, n))
                kept |= averaged(kept["average"], kept["average_rest"] if new.dtype == np.float32 else None, new, c)
        if "master" in kept:
            kept["master"] = new
        return new.astype(w.dtype), new_states


def bits(a: Array) -> Array:
    """Integers of the same bits."""
    return a.view(f"u{a.dtype.itemsize}")


def moved(a: Array, towards: Array, c: float) -> Array:
    """A part of the way; all of it is there, without rounding."""
    (c,) = rounded(a, c)
    return towards if c == 1 else a + c * (towards - a)


def averaged(a: Array, lost: Array | None, w: Array, c: Any) -> dict[str, Array]:
    """An average after one more point of weight c, and what float32 has lost of it so far."""
    if lost is None:
        return {"average": moved(a, w, c)}
    if c == 1:
        return {"average": w, "average_rest": np.zeros_like(w)}
    x = c * (w - a) + lost
    return {"average": a + x, "average_rest": x - ((a + x) - a)}


def new_point(average: Any, n: int) -> float:
    """The weight of the n-th point in an average."""
    decay = getattr(average, "decay", None)
    if decay is None or n == 1:
        return 1.0 / n
    return float(1.0 - (min(decay, (1.0 + n) / (10.0 + n)) if average.warmup else decay))
