"""One update of one array: the optimizers' own kernels, for people who keep the states themselves.

Every function changes ``p`` and the states in place and returns nothing. The states are arrays of zeros before the
first update, of ``p``'s shape, in the dtype that ``p`` is computed in: float64 for float64, else float32; but for the
v of :func:`novograd_`, a float64 array without axes. Of a complex ``p`` they are complex arrays, or pairs of reals on a
last axis of 2. ``step`` is the number of this update, 1 at the first.
``options``: ``weight_decay`` (decoupled), ``l2`` (coupled), ``maximize``. The formulas and their sources are those of
the classes in :mod:`ravine.optimizers`. Arrays of other libraries are taken as the optimizers take them.

>>> p, g, m, v = np.ones(3), np.full(3, 0.5), np.zeros(3), np.zeros(3)
>>> rv.functional.adamw_(p, g, m, v, step=1, lr=0.1); p.round(6)
array([0.899, 0.899, 0.899])
"""

from __future__ import annotations

from typing import Any, TypedDict, Unpack

from ravine.backends import backend_of
from ravine.backends.foreign import adopt

__all__ = [
    "adabelief_",
    "adadelta_",
    "adagrad_",
    "adagrad_mean_",
    "adam_",
    "adam_amsgrad_",
    "adamax_",
    "adamw_",
    "adan_",
    "ademamix_",
    "adopt_",
    "asgd_",
    "heavy_ball_",
    "lamb_",
    "lars_",
    "lion_",
    "madgrad_",
    "momentum_",
    "nadam_",
    "nesterov_",
    "novograd_",
    "radam_",
    "rmsprop_",
    "rmsprop_centered_",
    "rmsprop_centered_momentum_",
    "rmsprop_momentum_",
    "rmsprop_momentum_before_",
    "rprop_",
    "schedule_free_adamw_",
    "schedule_free_sgd_",
    "sgd_",
    "sign_sgd_",
    "signum_",
    "velocity_",
    "velocity_nesterov_",
    "velocity_nesterov_chainer_",
    "yogi_",
]


class CommonButDecay(TypedDict, total=False):
    """What :func:`adamw_` takes: coupled decay λ ≥ 0, ascent, and where decoupled decay acts, as of an optimizer."""

    l2: float
    maximize: bool
    decay_after: bool
    decay_implicit: bool
    decay_unscaled: bool


class Common(CommonButDecay, total=False):
    """What every update takes: decoupled decay λ ≥ 0, coupled decay λ ≥ 0, ascent."""

    weight_decay: float


def _apply(rule: str, p: Any, g: Any, step: int, options: Common, states: dict[str, Any], **hyper: float) -> None:
    known = {**CommonButDecay.__annotations__, **Common.__annotations__}
    if unknown := [name for name in options if name not in known]:
        raise TypeError(f"{rule}_: unknown option {unknown[0]!r}; it takes {[*hyper, *known]}")
    numbers = {**hyper, **options}
    hyper_values = [(name, float(value)) for name, value in numbers.items()]  # type: ignore[arg-type]
    p, g = adopt(p, "p", True), adopt(g, "g", False)
    shared = [(name, adopt(state, name, True)) for name, state in states.items()]
    backend_of(p).apply(rule, hyper_values, step, p, g, shared)


def sgd_(p: Any, g: Any, *, lr: float, **options: Unpack[Common]) -> None:
    """w ← w − γg.

    >>> p = np.ones(2); rv.functional.sgd_(p, np.ones(2), lr=0.25); p
    array([0.75, 0.75])
    """
    _apply("sgd", p, g, 1, options, {}, lr=lr)


def momentum_(
    p: Any,
    g: Any,
    b: Any,
    *,
    step: int,
    lr: float,
    momentum: float = 0.9,
    dampening: float = 0.0,
    average: bool = False,
    dampen_first: bool = False,
    **options: Unpack[Common],
) -> None:
    """b ← μb + (1−τ)g, first b = g, w ← w − γb; ``average``: b ← μb + (1−μ)g from 0; ``dampen_first``: b = (1−τ)g.

    >>> p, b = np.ones(2), np.zeros(2)
    >>> rv.functional.momentum_(p, np.ones(2), b, step=1, lr=0.25, dampening=0.5); p, b
    (array([0.75, 0.75]), array([1., 1.]))
    """
    shape = {"dampening": dampening, "average": average, "dampen_first": dampen_first}
    _apply("momentum", p, g, step, options, {"b": b}, lr=lr, momentum=momentum, **shape)


def nesterov_(
    p: Any, g: Any, b: Any, *, step: int, lr: float, momentum: float = 0.9, **options: Unpack[Common]
) -> None:
    """b ← μb + g, w ← w − γ(g + μb).

    >>> p, b = np.ones(2), np.zeros(2)
    >>> rv.functional.nesterov_(p, np.ones(2), b, step=1, lr=0.25, momentum=0.5); p
    array([0.625, 0.625])
    """
    _apply("nesterov", p, g, step, options, {"b": b}, lr=lr, momentum=momentum)


def velocity_(
    p: Any, g: Any, v: Any, *, step: int, lr: float, momentum: float = 0.9, **options: Unpack[Common]
) -> None:
    """v ← μv − γg, w ← w + v.

    >>> p, v = np.ones(2), np.zeros(2)
    >>> rv.functional.velocity_(p, np.ones(2), v, step=1, lr=0.25); p, v
    (array([0.75, 0.75]), array([-0.25, -0.25]))
    """
    _apply("velocity", p, g, step, options, {"v": v}, lr=lr, momentum=momentum)


def velocity_nesterov_(
    p: Any, g: Any, v: Any, *, step: int, lr: float, momentum: float = 0.9, **options: Unpack[Common]
) -> None:
    """v ← μv − γg, w ← w + (μv − γg).

    >>> p, v = np.ones(2), np.zeros(2)
    >>> rv.functional.velocity_nesterov_(p, np.ones(2), v, step=1, lr=0.25, momentum=0.5); p
    array([0.625, 0.625])
    """
    _apply("velocity_nesterov", p, g, step, options, {"v": v}, lr=lr, momentum=momentum)


def velocity_nesterov_chainer_(
    p: Any, g: Any, v: Any, *, step: int, lr: float, momentum: float = 0.9, **options: Unpack[Common]
) -> None:
    """v ← μv − γg, w ← w + μ²v − (1+μ)γg.

    >>> p, v = np.ones(2), np.zeros(2)
    >>> rv.functional.velocity_nesterov_chainer_(p, np.ones(2), v, step=1, lr=0.25, momentum=0.5); p
    array([0.5625, 0.5625])
    """
    _apply("velocity_nesterov_chainer", p, g, step, options, {"v": v}, lr=lr, momentum=momentum)


def heavy_ball_(
    p: Any, g: Any, previous: Any, *, step: int, lr: float, momentum: float = 0.9, **options: Unpack[Common]
) -> None:
    """w ← w − γg + μ(w − w⁻), no motion in the first step; ``previous`` becomes the old w.

    >>> p, previous = np.ones(2), np.zeros(2)
    >>> rv.functional.heavy_ball_(p, np.ones(2), previous, step=1, lr=0.25); p, previous
    (array([0.75, 0.75]), array([1., 1.]))
    """
    _apply("heavy_ball", p, g, step, options, {"previous": previous}, lr=lr, momentum=momentum)


def adagrad_(
    p: Any,
    g: Any,
    v: Any,
    *,
    step: int,
    lr: float,
    eps: float = 1e-10,
    initial: float = 0.0,
    eps_inside: bool = False,
    **options: Unpack[Common],
) -> None:
    """v ← v + g², w ← w − γ·g/(√v + ε), or √(v + ε); ``initial`` is added to v in the first step.

    >>> p, v = np.ones(2), np.zeros(2)
    >>> rv.functional.adagrad_(p, np.full(2, 3.0), v, step=1, lr=0.25); p, v
    (array([0.75, 0.75]), array([9., 9.]))
    """
    _apply("adagrad", p, g, step, options, {"v": v}, lr=lr, eps=eps, initial=initial, eps_inside=eps_inside)


def adagrad_mean_(
    p: Any, g: Any, v: Any, *, step: int, lr: float, eps: float = 1e-10, **options: Unpack[Common]
) -> None:
    """v ← v + (g² − v)/t, w ← w − γ·g/(√v + ε).

    >>> p, v = np.ones(2), np.full(2, 1.0)
    >>> rv.functional.adagrad_mean_(p, np.full(2, 3.0), v, step=2, lr=0.25); v
    array([5., 5.])
    """
    _apply("adagrad_mean", p, g, step, options, {"v": v}, lr=lr, eps=eps)


def rmsprop_(
    p: Any,
    g: Any,
    v: Any,
    *,
    step: int,
    lr: float,
    decay: float = 0.99,
    eps: float = 1e-8,
    eps_inside: bool = False,
    first_square: bool = False,
    **options: Unpack[Common],
) -> None:
    """v ← βv + (1−β)g², w ← w − γ·g/(√v + ε), or √(v + ε) if ``eps_inside``; ``first_square``: first v = g².

    >>> p, v = np.ones(2), np.zeros(2)
    >>> rv.functional.rmsprop_(p, np.full(2, 3.0), v, step=1, lr=0.25, first_square=True); v
    array([9., 9.])
    """
    shape = {"decay": decay, "eps": eps, "eps_inside": eps_inside, "first_square": first_square}
    _apply("rmsprop", p, g, step, options, {"v": v}, lr=lr, **shape)


def rmsprop_centered_(
    p: Any,
    g: Any,
    v: Any,
    a: Any,
    *,
    step: int,
    lr: float,
    decay: float = 0.99,
    eps: float = 1e-8,
    eps_inside: bool = False,
    first_square: bool = False,
    **options: Unpack[Common],
) -> None:
    """As :func:`rmsprop_` with v − a² in place of v, a ← βa + (1−β)g.

    >>> p, v, a = np.ones(2), np.zeros(2), np.zeros(2)
    >>> rv.functional.rmsprop_centered_(p, np.full(2, 3.0), v, a, step=1, lr=0.25, decay=0.5); a
    array([1.5, 1.5])
    """
    shape = {"decay": decay, "eps": eps, "eps_inside": eps_inside, "first_square": first_square}
    _apply("rmsprop_centered", p, g, step, options, {"v": v, "a": a}, lr=lr, **shape)


def rmsprop_momentum_(
    p: Any,
    g: Any,
    v: Any,
    b: Any,
    *,
    step: int,
    lr: float,
    decay: float = 0.99,
    eps: float = 1e-8,
    eps_inside: bool = False,
    first_square: bool = False,
    momentum: float = 0.9,
    lr_inside: bool = False,
    **options: Unpack[Common],
) -> None:
    """As :func:`rmsprop_`, then b ← μb + g/(√v + ε), w ← w − γb; ``lr_inside``: γ within b.

    >>> p, v, b = np.ones(2), np.zeros(2), np.zeros(2)
    >>> rv.functional.rmsprop_momentum_(p, np.full(2, 3.0), v, b, step=1, lr=0.25, eps=0, first_square=True); b
    array([1., 1.])
    """
    shape = {"decay": decay, "eps": eps, "eps_inside": eps_inside, "first_square": first_square}
    shape |= {"momentum": momentum, "lr_inside": lr_inside}
    _apply("rmsprop_momentum", p, g, step, options, {"v": v, "b": b}, lr=lr, **shape)


def rmsprop_centered_momentum_(
    p: Any,
    g: Any,
    v: Any,
    a: Any,
    b: Any,
    *,
    step: int,
    lr: float,
    decay: float = 0.99,
    eps: float = 1e-8,
    eps_inside: bool = False,
    first_square: bool = False,
    momentum: float = 0.9,
    lr_inside: bool = False,
    **options: Unpack[Common],
) -> None:
    """As :func:`rmsprop_centered_`, with the momentum of :func:`rmsprop_momentum_`.

    >>> p, v, a, b = np.ones(2), np.zeros(2), np.zeros(2), np.zeros(2)
    >>> rv.functional.rmsprop_centered_momentum_(p, np.full(2, 3.0), v, a, b, step=1, lr=0.25, decay=0.5, eps=0); b
    array([2., 2.])
    """
    shape = {"decay": decay, "eps": eps, "eps_inside": eps_inside, "first_square": first_square}
    shape |= {"momentum": momentum, "lr_inside": lr_inside}
    _apply("rmsprop_centered_momentum", p, g, step, options, {"v": v, "a": a, "b": b}, lr=lr, **shape)


def rmsprop_momentum_before_(
    p: Any,
    g: Any,
    v: Any,
    m: Any,
    *,
    step: int,
    lr: float,
    decay: float = 0.99,
    eps: float = 1e-8,
    eps_inside: bool = False,
    first_square: bool = False,
    momentum: float = 0.9,
    **options: Unpack[Common],
) -> None:
    """v as in :func:`rmsprop_`, m ← μm + g, w ← w − γ·m/(√v + ε).

    >>> p, v, m = np.ones(2), np.zeros(2), np.zeros(2)
    >>> rv.functional.rmsprop_momentum_before_(p, np.full(2, 3.0), v, m, step=1, lr=0.25, eps=0, first_square=True); p
    array([0.75, 0.75])
    """
    shape = {"decay": decay, "eps": eps, "eps_inside": eps_inside, "first_square": first_square, "momentum": momentum}
    _apply("rmsprop_momentum_before", p, g, step, options, {"v": v, "m": m}, lr=lr, **shape)


def adam_(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    *,
    step: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    bias_correction: bool = True,
    eps_inside: bool = False,
    eps_hat: bool = False,
    **options: Unpack[Common],
) -> None:
    """m ← β₁m + (1−β₁)g, v ← β₂v + (1−β₂)g², w ← w − γ·m̂/(√v̂ + ε).

    >>> p, m, v = np.ones(2), np.zeros(2), np.zeros(2)
    >>> rv.functional.adam_(p, np.full(2, 3.0), m, v, step=1, lr=0.25); p.round(6)
    array([0.75, 0.75])
    """
    shape = {"bias_correction": bias_correction, "eps_inside": eps_inside, "eps_hat": eps_hat}
    _apply("adam", p, g, step, options, {"m": m, "v": v}, lr=lr, beta1=betas[0], beta2=betas[1], eps=eps, **shape)


def adamw_(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    *,
    step: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    **options: Unpack[CommonButDecay],
) -> None:
    """w ← (1−γλ)w − γ·m̂/(√v̂ + ε): :func:`adam_` with decoupled decay.

    >>> p, m, v = np.ones(2), np.zeros(2), np.zeros(2)
    >>> rv.functional.adamw_(p, np.full(2, 3.0), m, v, step=1, lr=0.25, weight_decay=1.0); p.round(6)
    array([0.5, 0.5])
    """
    adam_(p, g, m, v, step=step, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **options)


def adam_amsgrad_(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    v_max: Any,
    *,
    step: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    bias_correction: bool = True,
    eps_inside: bool = False,
    eps_hat: bool = False,
    max_corrected: bool = False,
    **options: Unpack[Common],
) -> None:
    """As :func:`adam_` with v̄ ← max(v̄, v) in place of v in the denominator; ``max_corrected``: v̂ in place of v.

    >>> p, m, v, v_max = np.ones(2), np.zeros(2), np.zeros(2), np.full(2, 9.0)
    >>> rv.functional.adam_amsgrad_(p, np.zeros(2), m, v, v_max, step=1); v, v_max
    (array([0., 0.]), array([9., 9.]))
    """
    shape = {"bias_correction": bias_correction, "eps_inside": eps_inside, "eps_hat": eps_hat}
    shape |= {"max_corrected": max_corrected}
    states = {"m": m, "v": v, "v_max": v_max}
    _apply("adam_amsgrad", p, g, step, options, states, lr=lr, beta1=betas[0], beta2=betas[1], eps=eps, **shape)


def lion_(
    p: Any,
    g: Any,
    m: Any,
    *,
    step: int,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.99),
    **options: Unpack[Common],
) -> None:
    """w ← w − γ·sign(β₁m + (1−β₁)g), m ← β₂m + (1−β₂)g.

    >>> p, m = np.ones(2), np.zeros(2)
    >>> rv.functional.lion_(p, np.array([2.0, -3.0]), m, step=1, lr=0.25); p
    array([0.75, 1.25])
    """
    _apply("lion", p, g, step, options, {"m": m}, lr=lr, beta1=betas[0], beta2=betas[1])


def sign_sgd_(p: Any, g: Any, *, lr: float = 1e-4, **options: Unpack[Common]) -> None:
    """W ← w − γ·sign(g).

    >>> p = np.ones(2); rv.functional.sign_sgd_(p, np.array([2.0, -3.0]), lr=0.25); p
    array([0.75, 1.25])
    """
    _apply("sign_sgd", p, g, 1, options, {}, lr=lr)


def signum_(
    p: Any, g: Any, m: Any, *, step: int, lr: float = 1e-4, momentum: float = 0.9, **options: Unpack[Common]
) -> None:
    """M ← μm + (1−μ)g, w ← w − γ·sign(m).

    >>> p, m = np.ones(2), np.zeros(2)
    >>> rv.functional.signum_(p, np.array([2.0, -3.0]), m, step=1, lr=0.25, momentum=0.5); p, m
    (array([0.75, 1.25]), array([ 1. , -1.5]))
    """
    _apply("signum", p, g, step, options, {"m": m}, lr=lr, momentum=momentum)


def adamax_(
    p: Any,
    g: Any,
    m: Any,
    u: Any,
    *,
    step: int,
    lr: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    bias_correction: bool = True,
    eps_outside: bool = False,
    **options: Unpack[Common],
) -> None:
    """M ← β₁m + (1−β₁)g, u ← max(β₂u, |g| + ε), w ← w − γ/(1−β₁ᵗ)·m/u; ``eps_outside``: ε beside u.

    >>> p, m, u = np.ones(2), np.zeros(2), np.zeros(2)
    >>> rv.functional.adamax_(p, np.array([2.0, -3.0]), m, u, step=1, lr=0.25, eps=0.0); p.round(6), u
    (array([0.75, 1.25]), array([2., 3.]))
    """
    shape = {"bias_correction": bias_correction, "eps_outside": eps_outside}
    _apply("adamax", p, g, step, options, {"m": m, "u": u}, lr=lr, beta1=betas[0], beta2=betas[1], eps=eps, **shape)


def adadelta_(
    p: Any,
    g: Any,
    v: Any,
    u: Any,
    *,
    step: int,
    lr: float = 1.0,
    rho: float = 0.9,
    eps: float = 1e-6,
    **options: Unpack[Common],
) -> None:
    """V ← ρv + (1−ρ)g², d = √(u + ε)/√(v + ε)·g, u ← ρu + (1−ρ)d², w ← w − γd.

    >>> p, v, u = np.ones(2), np.zeros(2), np.full(2, 4.0)
    >>> rv.functional.adadelta_(p, np.full(2, 3.0), v, u, step=1, lr=0.25, rho=0.0, eps=0.0); p, v, u
    (array([0.5, 0.5]), array([9., 9.]), array([4., 4.]))
    """
    _apply("adadelta", p, g, step, options, {"v": v, "u": u}, lr=lr, rho=rho, eps=eps)


def nadam_(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    *,
    step: int,
    lr: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    momentum_decay: float = 4e-3,
    constant_momentum: bool = False,
    **options: Unpack[Common],
) -> None:
    """As :func:`adam_` with a look ahead in place of m̂, see :class:`ravine.NAdam`.

    >>> p, m, v = np.ones(2), np.zeros(2), np.zeros(2)
    >>> rv.functional.nadam_(p, np.full(2, 3.0), m, v, step=1, lr=0.25, betas=(0.0, 0.999)); p.round(6)
    array([0.75, 0.75])
    """
    hyper = {"lr": lr, "beta1": betas[0], "beta2": betas[1], "eps": eps, "momentum_decay": momentum_decay}
    hyper |= {"constant_momentum": constant_momentum}
    _apply("nadam", p, g, step, options, {"m": m, "v": v}, **hyper)


def radam_(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    *,
    step: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    eps_hat: bool = True,
    from_four: bool = False,
    **options: Unpack[Common],
) -> None:
    """As :func:`adam_`, but w ← w − γ·m̂ in the first updates, and then rectified, see :class:`ravine.RAdam`.

    >>> p, m, v = np.ones(2), np.zeros(2), np.zeros(2)
    >>> rv.functional.radam_(p, np.full(2, 3.0), m, v, step=1, lr=0.25); p.round(6)
    array([0.25, 0.25])
    """
    shape = {"eps_hat": eps_hat, "from_four": from_four}
    _apply("radam", p, g, step, options, {"m": m, "v": v}, lr=lr, beta1=betas[0], beta2=betas[1], eps=eps, **shape)


def rprop_(
    p: Any,
    g: Any,
    g_previous: Any,
    size: Any,
    *,
    step: int,
    lr: float = 1e-2,
    etas: tuple[float, float] = (0.5, 1.2),
    step_sizes: tuple[float, float] = (1e-6, 50.0),
    **options: Unpack[Common],
) -> None:
    """S ← s·(η₊ if g has its old sign, η₋ if the other one) within bounds, w ← w − s·sign(g) unless the other one.

    γ is added to s at step 1; ``g_previous`` becomes g, or 0 after a change of sign.

    >>> p, g_previous, size = np.zeros(2), np.array([1.0, -1.0]), np.full(2, 0.5)
    >>> rv.functional.rprop_(p, np.ones(2), g_previous, size, step=2, etas=(0.5, 2.0)); p, g_previous, size
    (array([-1.,  0.]), array([1., 0.]), array([1.  , 0.25]))
    """
    hyper = {"lr": lr, "eta_minus": etas[0], "eta_plus": etas[1], "step_min": step_sizes[0], "step_max": step_sizes[1]}
    _apply("rprop", p, g, step, options, {"g_previous": g_previous, "size": size}, **hyper)


def adabelief_(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    *,
    step: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-16,
    eps_root: float | None = None,
    **options: Unpack[Common],
) -> None:
    """M ← β₁m + (1−β₁)g, v ← β₂v + (1−β₂)(g−m)² + ε₀, w ← w − γ·m̂/(√v̂ + ε); ``eps_root`` ε₀ is ε if None.

    >>> p, m, v = np.ones(2), np.zeros(2), np.zeros(2)
    >>> rv.functional.adabelief_(p, np.full(2, 4.0), m, v, step=1, lr=0.25, betas=(0.5, 0.5), eps=0.0); p, v
    (array([0.5, 0.5]), array([2., 2.]))
    """
    places = {"eps": eps, "eps_root": eps if eps_root is None else eps_root}
    _apply("adabelief", p, g, step, options, {"m": m, "v": v}, lr=lr, beta1=betas[0], beta2=betas[1], **places)


def yogi_(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    *,
    step: int,
    lr: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-3,
    bias_correction: bool = False,
    initial: float = 0.0,
    **options: Unpack[Common],
) -> None:
    """M ← β₁m + (1−β₁)g, v ← v − (1−β₂)·sign(v − g²)·g², w ← w − γ·m/(√v + ε); ``initial`` is added at first.

    >>> p, m, v = np.ones(2), np.zeros(2), np.array([9.0, 1.0])
    >>> rv.functional.yogi_(p, np.full(2, 2.0), m, v, step=1, betas=(0.5, 0.5)); v
    array([7., 3.])
    """
    hyper = {"lr": lr, "beta1": betas[0], "beta2": betas[1], "eps": eps, "bias_correction": bias_correction}
    hyper |= {"initial": initial}
    _apply("yogi", p, g, step, options, {"m": m, "v": v}, **hyper)


def ademamix_(
    p: Any,
    g: Any,
    m: Any,
    n: Any,
    v: Any,
    *,
    step: int,
    lr: float = 1e-3,
    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
    eps: float = 1e-8,
    alpha: float = 5.0,
    **options: Unpack[Common],
) -> None:
    """As :func:`adam_` with m̂ + αn in place of m̂, n ← β₃n + (1−β₃)g.

    >>> p, m, n, v = np.ones(2), np.zeros(2), np.zeros(2), np.zeros(2)
    >>> betas = (0.5, 0.75, 0.5)
    >>> rv.functional.ademamix_(p, np.full(2, 4.0), m, n, v, step=1, lr=0.25, betas=betas, eps=0.0, alpha=2.0); p, n
    (array([0.5, 0.5]), array([2., 2.]))
    """
    hyper = {"lr": lr, "beta1": betas[0], "beta2": betas[1], "beta3": betas[2], "eps": eps, "alpha": alpha}
    _apply("ademamix", p, g, step, options, {"m": m, "n": n, "v": v}, **hyper)


def adopt_(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    *,
    step: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.9999),
    eps: float = 1e-6,
    clip: bool = True,
    **options: Unpack[Common],
) -> None:
    """N = g/max(√v, ε) within ±(t−1)^¼, m ← β₁m + (1−β₁)n, w ← w − γm, v ← β₂v + (1−β₂)g²; first v = g².

    >>> p, m, v = np.ones(2), np.zeros(2), np.full(2, 4.0)
    >>> rv.functional.adopt_(p, np.array([1.0, 9.0]), m, v, step=2, lr=0.5, betas=(0.5, 0.5)); p, m
    (array([0.875, 0.75 ]), array([0.25, 0.5 ]))
    """
    hyper = {"lr": lr, "beta1": betas[0], "beta2": betas[1], "eps": eps, "clip": clip}
    _apply("adopt", p, g, step, options, {"m": m, "v": v}, **hyper)


def adan_(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    n: Any,
    g_previous: Any,
    *,
    step: int,
    lr: float = 1e-3,
    betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
    eps: float = 1e-8,
    eps_root: float = 0.0,
    bias_correction: bool = True,
    look_less: bool = False,
    **options: Unpack[Common],
) -> None:
    """D = g − g⁻ (0 at step 1), m, v and n running means of g, d and (g + β₂d)², w ← w − γ·(m̂ + β₂v̂)/(√n̂ + ε).

    >>> p, m, v, n, g_previous = (np.zeros(2) for _ in range(5))
    >>> rv.functional.adan_(p, np.full(2, 3.0), m, v, n, g_previous, step=1, lr=0.25); p.round(6), v, g_previous
    (array([-0.25, -0.25]), array([0., 0.]), array([3., 3.]))
    """
    hyper = {"lr": lr, "beta1": betas[0], "beta2": betas[1], "beta3": betas[2], "eps": eps, "eps_root": eps_root}
    hyper |= {"bias_correction": bias_correction, "look_less": look_less}
    _apply("adan", p, g, step, options, {"m": m, "v": v, "n": n, "g_previous": g_previous}, **hyper)


def asgd_(
    p: Any,
    g: Any,
    average: Any,
    *,
    step: int,
    lr: float = 1e-2,
    lambd: float = 1e-4,
    alpha: float = 0.75,
    t0: float = 1e6,
    **options: Unpack[Common],
) -> None:
    """η = γ/(1 + κγ(t−1))^α, w ← (1−κη)w − ηg, a ← a + (w − a)/max(1, t−1−t₀), κ being ``lambd``.

    >>> p, average = np.ones(2), np.zeros(2)
    >>> rv.functional.asgd_(p, np.ones(2), average, step=1, lr=0.5, lambd=0.5); p, average
    (array([0.25, 0.25]), array([0.25, 0.25]))
    """
    _apply("asgd", p, g, step, options, {"average": average}, lr=lr, lambd=lambd, alpha=alpha, t0=t0)


def madgrad_(
    p: Any,
    g: Any,
    g_sum: Any,
    v: Any,
    start: Any,
    *,
    step: int,
    lr: float = 0.01,
    momentum: float = 0.9,
    eps: float = 1e-6,
    **options: Unpack[Common],
) -> None:
    """S ← s + γ√t·g, v ← v + γ√t·g², w ← μw + (1−μ)(x₀ − s/(∛v + ε)), s being ``g_sum``, x₀ ``start``.

    >>> p, g_sum, v, start = np.zeros(2), np.zeros(2), np.zeros(2), np.zeros(2)
    >>> rv.functional.madgrad_(p, np.full(2, 8.0), g_sum, v, start, step=1, lr=0.125, momentum=0.5, eps=0.0)
    >>> p, g_sum, v
    (array([-0.25, -0.25]), array([1., 1.]), array([8., 8.]))
    """
    states = {"g_sum": g_sum, "v": v, "start": start}
    _apply("madgrad", p, g, step, options, states, lr=lr, momentum=momentum, eps=eps)


def schedule_free_sgd_(
    p: Any,
    g: Any,
    d: Any,
    *,
    step: int,
    lr: float = 1.0,
    momentum: float = 0.9,
    warmup_steps: float = 0.0,
    **options: Unpack[Common],
) -> None:
    """Z ← z − γ(g + λw), x ← (1−c)x + cz, w = (1−μ)z + μx, of which d = z − x is stored.

    >>> p, d = np.full(2, 0.5), np.zeros(2)
    >>> rv.functional.schedule_free_sgd_(p, np.ones(2), d, step=2, lr=0.5, momentum=0.5); p, d  # z = 0, x = 0.25
    (array([0.125, 0.125]), array([-0.25, -0.25]))
    """
    hyper = {"lr": lr, "momentum": momentum, "warmup_steps": warmup_steps}
    _apply("schedule_free_sgd", p, g, step, options, {"d": d}, **hyper)


def schedule_free_adamw_(
    p: Any,
    g: Any,
    d: Any,
    v: Any,
    *,
    step: int,
    lr: float = 2.5e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    warmup_steps: float = 0.0,
    **options: Unpack[Common],
) -> None:
    """As :func:`schedule_free_sgd_` with β₁ for μ and g/(√v̂ + ε) for g, v ← β₂v + (1−β₂)g².

    >>> p, d, v = np.ones(2), np.zeros(2), np.zeros(2)
    >>> rv.functional.schedule_free_adamw_(p, np.full(2, 3.0), d, v, step=1, lr=0.25); p.round(6), v.round(6)
    (array([0.75, 0.75]), array([0.009, 0.009]))
    """
    hyper = {"lr": lr, "beta1": betas[0], "beta2": betas[1], "eps": eps, "warmup_steps": warmup_steps}
    _apply("schedule_free_adamw", p, g, step, options, {"d": d, "v": v}, **hyper)


def lars_(
    p: Any,
    g: Any,
    v: Any,
    *,
    step: int,
    lr: float,
    momentum: float = 0.9,
    trust_coefficient: float = 1e-3,
    eps: float = 0.0,
    adapt: bool = True,
    **options: Unpack[Common],
) -> None:
    """V ← μv + γ·r·(g + λw), w ← w − v, r = η‖w‖/(‖g‖ + λ‖w‖ + ε), or 1 where a norm is 0.

    >>> p, v = np.array([3.0, 4.0]), np.zeros(2)
    >>> rv.functional.lars_(p, np.array([0.0, 2.0]), v, step=1, lr=0.5, trust_coefficient=0.4); p, v  # r = 0.4·5/2
    (array([3., 3.]), array([0., 1.]))
    """
    hyper = {"momentum": momentum, "trust_coefficient": trust_coefficient, "eps": eps, "adapt": adapt}
    _apply("lars", p, g, step, options, {"v": v}, lr=lr, **hyper)


def lamb_(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    *,
    step: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    adapt: bool = True,
    **options: Unpack[Common],
) -> None:
    """As :func:`adam_`, with u = m̂/(√v̂ + ε) + λw and w ← w − γ·‖w‖/‖u‖·u; the ratio is 1 where a norm is 0.

    >>> p, m, v = np.array([3.0, 4.0]), np.zeros(2), np.zeros(2)
    >>> rv.functional.lamb_(p, np.array([0.0, 2.0]), m, v, step=1, lr=0.05, eps=0.0); p.round(6)  # u = (0, 1)
    array([3.  , 3.75])
    """
    hyper = {"lr": lr, "beta1": betas[0], "beta2": betas[1], "eps": eps, "adapt": adapt}
    _apply("lamb", p, g, step, options, {"m": m, "v": v}, **hyper)


def novograd_(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    *,
    step: int,
    lr: float = 0.01,
    betas: tuple[float, float] = (0.95, 0.98),
    eps: float = 1e-8,
    **options: Unpack[Common],
) -> None:
    """V ← β₂v + (1−β₂)‖g‖² (‖g‖² at step 1), m ← β₁m + (g/(√v + ε) + λw), w ← w − γm; v is float64 without axes.

    >>> p, m, v = np.array([3.0, 4.0]), np.zeros(2), np.zeros(())
    >>> rv.functional.novograd_(p, np.array([0.0, 2.0]), m, v, step=1, lr=0.25, eps=0.0); p, v
    (array([3.  , 3.75]), array(4.))
    """
    _apply("novograd", p, g, step, options, {"m": m, "v": v}, lr=lr, beta1=betas[0], beta2=betas[1], eps=eps)
