r"""Weight decay outside the momentum as L2 inside it, and back: two descriptions of one path.

Decoupled is v ← μv + g, w ← (1 − γλ)w − γv: ``SGD(momentum=, weight_decay=)``. Coupled is v ← μv + g + λw,
w ← w − γv: ``SGD(momentum=, l2=)``. Without v each is a recurrence of second order in w,

    decoupled:  w⁺ = (r + μ)w − μr·w⁻ − γg, with r = 1 − γλ;    coupled:  w⁺ = (1 + μ' − γ'λ')w − μ'w⁻ − γ'g,

and equal coefficients give the hyperparameters, an equal first step the buffer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from ravine import trees

__all__ = ["Conversion", "coupled_to_decoupled", "decoupled_to_coupled"]

Form = Literal["accumulate", "average"]

# The boundary of the discriminant is reached by hyperparameters that were themselves rounded.
_ROUNDING = 2.0**-50


@dataclass(frozen=True)
class Conversion:
    """Hyperparameters, and buffers if they were asked for, of the other description of a run.

    Args:
        lr: γ, the learning rate.
        momentum: μ.
        weight_decay: decoupled λ; 0 in a coupled description.
        l2: coupled λ; 0 in a decoupled description.
        form: of the momentum, as it was given.
        buffers: new arrays nested like the parameters, or None.

    >>> rv.convert.decoupled_to_coupled(lr=0.5, momentum=0.5, weight_decay=0.5)
    Conversion(lr=0.5, momentum=0.375, weight_decay=0.0, l2=0.25, form='accumulate', buffers=None)
    """

    lr: float
    momentum: float
    weight_decay: float
    l2: float
    form: Form
    buffers: Any = None


def decoupled_to_coupled(
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    form: Form = "accumulate",
    params: Any = None,
    buffers: Any = None,
    nesterov: bool = False,
    dampening: float = 0.0,
) -> Conversion:
    r"""Describe momentum with decoupled weight decay as momentum with L2 inside.

    .. math:: \gamma' = \gamma, \quad \mu' = \mu(1 - \gamma\lambda), \quad \lambda' = (1 - \mu)\lambda, \quad
        v' = \frac{v + \lambda w}{1 - \gamma\lambda}

    and for the averaged form γ' = γ(1 − μ)/(1 − μ'), λ' = λ, v' = (γ/γ')(v + λw)/(1 − γλ).

    Args:
        lr: γ ≥ 0, a constant: under a schedule no constant μ' exists.
        momentum: μ in [0, 1).
        weight_decay: λ ≥ 0, with γλ < 1.
        form: ``"accumulate"``, v ← μv + g, or ``"average"``, v ← μv + (1 − μ)g.
        params: the current parameters, an array or any nesting of dict, list and tuple of arrays. Without ``buffers``
            they are those of a fresh run, whose v is 0; its v' is not.
        buffers: the current v, nested like the parameters.
        nesterov: only False; here for ``**settings`` of an optimizer.
        dampening: only 0; here for ``**settings`` of an optimizer.

    Returns:
        The same path: from the returned buffers, every later step gives the same parameters up to rounding.

    Raises:
        ValueError: a hyperparameter out of range, γλ ≥ 1, Nesterov, dampening, buffers that do not fit the parameters.
        TypeError: a schedule or other non-number for a hyperparameter, or a buffer that is no floating-point array.

    Source: equate the coefficients of w, w⁻ and g in the module's two recurrences.

    >>> w = np.array([1.0, -2.0])
    >>> new = rv.convert.decoupled_to_coupled(lr=0.5, momentum=0.5, weight_decay=0.5, params=w)
    >>> new.momentum, new.l2, new.buffers.round(3)
    (0.375, 0.25, array([ 0.667, -1.333]))
    """
    gamma, mu, lam = _hyperparameters(lr, momentum, "weight_decay", weight_decay, form, nesterov, dampening)
    if gamma * lam >= 1:
        raise ValueError(
            f"lr * weight_decay: expected less than 1, got {gamma * lam}: a step would forget w altogether; "
            "lower lr or weight_decay"
        )
    kept = 1 - gamma * lam
    new_mu = mu * kept
    # How much of g the buffer takes in: 1 in an accumulating form.
    old_share, new_share = (1.0, 1.0) if form == "accumulate" else (1 - mu, 1 - new_mu)
    new_gamma = gamma * old_share / new_share
    new_lam = (1 - mu) * lam if form == "accumulate" else lam
    # γ/γ' as the quotient of the shares, which γ = 0 has as well.
    ratio = new_share / old_share / kept

    def convert(v: Any, w: Any) -> Any:
        return ratio * (v + lam * w)

    return Conversion(new_gamma, new_mu, 0.0, new_lam, form, _convert_buffers(convert, params, buffers))


def coupled_to_decoupled(
    *,
    lr: float,
    momentum: float,
    l2: float,
    form: Form = "accumulate",
    params: Any = None,
    buffers: Any = None,
    nesterov: bool = False,
    dampening: float = 0.0,
) -> Conversion:
    r"""Describe momentum with L2 inside as momentum with decoupled weight decay.

    .. math:: s = 1 + \mu' - \gamma'\lambda', \quad \mu = \frac{2\mu'}{s + \sqrt{s^2 - 4\mu'}}, \quad
        \lambda = \frac{\lambda'}{1 - \mu}, \quad v = (1 - \gamma\lambda)v' - \lambda w

    and γ = γ'. For the averaged form s = 1 + μ' − γ'(1 − μ')λ', γ = γ'(1 − μ')/(1 − μ), λ = λ',
    v = (γ'/γ)(1 − γλ)v' − λw.

    r = 1 − γλ and μ are the roots of x² − sx + μ' = 0, and exchangeable; r is taken to be the greater one. So
    converting there and back returns the hyperparameters of a decoupled run if μ ≤ 1 − γλ, else an equivalent pair.

    Args:
        lr: γ' ≥ 0, a constant.
        momentum: μ' in [0, 1).
        l2: λ' ≥ 0, with γ'λ' ≤ (1 − √μ')², or for the averaged form γ'(1 − μ')λ' ≤ (1 − √μ')².
        form: ``"accumulate"``, v ← μv + g + λw, or ``"average"``, v ← μv + (1 − μ)(g + λw).
        params: the current parameters, an array or any nesting of dict, list and tuple of arrays. Without ``buffers``
            they are those of a fresh run, whose v' is 0; its v is not.
        buffers: the current v', nested like the parameters.
        nesterov: only False; here for ``**settings`` of an optimizer.
        dampening: only 0; here for ``**settings`` of an optimizer.

    Returns:
        The same path: from the returned buffers, every later step gives the same parameters up to rounding.

    Raises:
        ValueError: a hyperparameter out of range, a path that no decoupled run takes (the roots are not real: w
            oscillates), γλ ≥ 1, Nesterov, dampening, buffers that do not fit the parameters.
        TypeError: a schedule or other non-number for a hyperparameter, or a buffer that is no floating-point array.

    Source: equate the coefficients of w, w⁻ and g in the module's two recurrences.

    >>> new = rv.convert.coupled_to_decoupled(lr=0.5, momentum=0.375, l2=0.25)
    >>> round(new.momentum, 12), round(new.weight_decay, 12)
    (0.5, 0.5)
    """
    gamma, mu, lam = _hyperparameters(lr, momentum, "l2", l2, form, nesterov, dampening)
    share = 1.0 if form == "accumulate" else 1 - mu
    pull = gamma * share * lam
    limit = (1 - math.sqrt(mu)) ** 2
    if mu == 0 and pull >= 1:
        raise ValueError(f"lr * l2: expected less than 1, got {pull}: a step would forget w altogether; lower lr or l2")
    if pull > limit + _ROUNDING:
        raise ValueError(
            f"l2: expected at most {limit / (gamma * share)} for lr = {gamma}, momentum = {mu} and form = {form!r}, "
            f"got {lam}: no decoupled run takes this path; lower l2, lr or momentum"
        )
    # s² − 4μ' = (s − 2√μ')(s + 2√μ'), without the cancellation of the left side.
    discriminant = max(limit - pull, 0.0) * ((1 + math.sqrt(mu)) ** 2 - pull)
    kept = (1 + mu - pull + math.sqrt(discriminant)) / 2
    new_mu = mu / kept
    old_share, new_share = (1.0, 1.0) if form == "accumulate" else (1 - mu, 1 - new_mu)
    new_gamma = gamma * old_share / new_share
    new_lam = lam / (1 - new_mu) if form == "accumulate" else lam
    ratio = new_share / old_share * kept

    def convert(v: Any, w: Any) -> Any:
        return ratio * v - new_lam * w

    return Conversion(new_gamma, new_mu, new_lam, 0.0, form, _convert_buffers(convert, params, buffers))


def _hyperparameters(
    lr: float, momentum: float, decay_name: str, decay: float, form: str, nesterov: bool, dampening: float
) -> tuple[float, float, float]:
    if form not in ("accumulate", "average"):
        raise ValueError(
            f'form: expected "accumulate" or "average", got {form!r}; '
            "a velocity divided by -lr is an accumulated buffer"
        )
    if nesterov:
        raise ValueError(f"nesterov: expected False, got {nesterov!r}; the two forms of decay differ under Nesterov")
    if dampening != 0:
        raise ValueError(f'dampening: expected 0, got {dampening!r}; form="average" is the form that can be converted')
    if callable(lr):
        raise TypeError(
            f"lr: expected a constant, got the schedule {lr!r}; under a changing rate no constant momentum will do"
        )
    for name, value in (("lr", lr), ("momentum", momentum), (decay_name, decay)):
        if not isinstance(value, Real) or isinstance(value, bool):
            raise TypeError(f"{name}: expected a number, got {value!r} of type {type(value).__name__}")
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}: expected a finite number of at least 0, got {value!r}")
    if momentum >= 1:
        raise ValueError(f"momentum: expected less than 1, got {momentum!r}")
    return float(lr), float(momentum), float(decay)


def _convert_buffers(convert: Callable[[Any, Any], Any], params: Any, buffers: Any) -> Any:
    if params is None:
        if buffers is not None:
            raise ValueError("params: expected the current parameters beside buffers, got None; pass both")
        return None
    weights = trees.leaves(params)
    old: dict[str, Any] = dict.fromkeys(weights) if buffers is None else trees.leaves(buffers)
    if old.keys() != weights.keys():
        missing, extra = sorted(weights.keys() - old), sorted(old.keys() - weights)
        raise ValueError(f"buffers: expected the names of params, got missing {missing}, extra {extra}")
    new = {}
    for name, w in weights.items():
        where = f"[{name!r}]" if isinstance(params, dict | list | tuple) else ""
        _check_float(f"params{where}", w)
        if buffers is None:
            new[name] = convert(0.0, w)[...]  # [...] keeps the result of a 0-d array an array
            continue
        v = old[name]
        _check_float(f"buffers{where}", v)
        if v.shape != w.shape:
            raise ValueError(f"buffers{where}: expected shape {w.shape} like its parameter, got {v.shape}")
        # In the buffer's precision, which may exceed a float16 parameter's.
        new[name] = convert(v, w.astype(v.dtype))[...]
    values = iter(new.values())
    return trees.map(lambda _: next(values), params)


def _check_float(name: str, array: Any) -> None:
    if not (hasattr(array, "dtype") and hasattr(array, "shape")):
        raise TypeError(f"{name}: expected an array, got {type(array).__name__}; make it one with np.asarray")
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise TypeError(f"{name}: expected floating-point numbers, got {array.dtype}; convert with astype")
