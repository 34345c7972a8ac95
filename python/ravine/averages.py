r"""Averages of the parameters, and Lookahead: options of every optimizer, done in the pass that updates them.

A point is the parameter after one of its updates, as it was computed, before it is rounded to float16 or bfloat16.
Updates are counted for each parameter by itself: one without a gradient stays as it is, and its average with it. A
skipped step leaves everything. The average is float64 for float64 parameters, else float32, and saved with the states.

The n-th point w that counts moves the average a, with c computed in float64 and rounded once:

.. math:: a \leftarrow a + c\,(w - a), \qquad c = 1 \text{ for } n = 1

so the first point is the average, whatever the parameter was before.

In float32 a sum of a and something smaller than half of its last bit is a: after thousands of points an average would
stand still. So a float32 average has an array of its own for what its rounding has lost, r, 0 at the first point:

.. math:: x = c\,(w - a) + r, \qquad a^+ = a + x, \qquad r^+ = x - (a^+ - a)

a is the average, rounded; in states and files it is ``average``, and r is ``average_rest``: 4 bytes more a parameter. A
state without r starts it at 0, and so does an element of a state whose ``average`` was changed. Where an average is
infinite or NaN, it stays so, and r with it, as without r: `nonfinite="skip"` keeps such points away.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ravine import _core
from ravine.backends import cpu

__all__ = ["EMA", "SWA", "Lookahead"]

#: Kept arrays that older states and files do not have: they start at 0.
LATER = frozenset({"average_rest"})


@dataclass(frozen=True)
class EMA:
    r"""Average the parameters with weights that decay into the past, as an optimizer's ``average``.

    .. math:: a \leftarrow a + (1 - d)\,(w - a), \qquad d = \min\!\left(\mathrm{decay}, \frac{1 + n}{10 + n}\right)

    for the n-th point, n ≥ 2; the first is the average. It remembers about 1/(1 − decay) points.

    Args:
        decay: the weight of the past, in [0, 1) (0.999).
        warmup: the minimum above (True), so that the average of a short run is not its beginning; False is d = decay.
        start: updates before the first that may count, ≥ 0 (0).
        every: which of the updates after count, ≥ 1 (1): start + every, start + 2·every, …

    Raises:
        ValueError: a value out of range, named.
        TypeError: a count that is not a whole number.

    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2015, section 8. The warm-up is
    that of TensorFlow's ``ExponentialMovingAverage`` with ``num_updates`` = n.

    >>> w = np.array([4.0]); opt = rv.SGD(w, lr=1.0, average=rv.EMA(decay=0.5, warmup=False))
    >>> for _ in range(3): _ = opt.step(np.ones(1))  # w: 3, 2, 1; a: 3, 2.5, 1.75
    >>> opt.averages()
    array([1.75])
    """

    decay: float = 0.999
    warmup: bool = field(default=True, kw_only=True)
    start: int = field(default=0, kw_only=True)
    every: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 <= _number("decay", self.decay) < 1:
            raise ValueError(f"decay: expected a number in [0, 1), got {self.decay!r}")
        _check_counts(self.start, self.every)


@dataclass(frozen=True)
class SWA:
    r"""Average the parameters with equal weights, as an optimizer's ``average``: stochastic weight averaging.

    .. math:: a \leftarrow a + \frac{w - a}{n}

    for the n-th point.

    Args:
        start: updates before the first that may count, ≥ 0 (0): when the rate has come down to its last value.
        every: which of the updates after count, ≥ 1 (1): start + every, start + 2·every, … With a cyclical rate the
            length of a cycle.

    Raises:
        ValueError: a value out of range, named.
        TypeError: a count that is not a whole number.

    Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", 2018, Algorithm 1,
    whose mean has the parameters at ``start`` as one more point. Running statistics of batch normalisation are to be
    computed anew for the averages.

    >>> w = np.array([4.0]); opt = rv.SGD(w, lr=1.0, average=rv.SWA(start=1))
    >>> for _ in range(3): _ = opt.step(np.ones(1))  # w: 3, 2, 1; the mean of 2 and 1
    >>> opt.averages()
    array([1.5])
    """

    start: int = field(default=0, kw_only=True)
    every: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        _check_counts(self.start, self.every)


@dataclass(frozen=True)
class Lookahead:
    r"""Go k steps with the optimizer, then only a part of the way from where they began, as its ``lookahead``.

    .. math:: w \leftarrow s + \alpha\,(w - s), \qquad s \leftarrow w

    at each k-th update of a parameter; s is the parameter as it was before the first update, then as it was after the
    last such. The states of the rule go on.

    Args:
        k: updates from one to the next, ≥ 1 (5).
        alpha: α in (0, 1] (0.5), the part of the way; 1 is the optimizer alone.

    Raises:
        ValueError: a value out of range, named.
        TypeError: a count that is not a whole number.

    Source: Zhang et al., "Lookahead Optimizer: k steps forward, 1 step back", 2019, Algorithm 1.

    >>> w = np.array([4.0]); opt = rv.SGD(w, lr=1.0, lookahead=rv.Lookahead(k=2, alpha=0.5))
    >>> for _ in range(2): _ = opt.step(np.ones(1))  # 3, then 2, and half of the way from 4 to it
    >>> w
    array([3.])
    """

    k: int = 5
    alpha: float = 0.5

    def __post_init__(self) -> None:
        if _whole("k", self.k) < 1:
            raise ValueError(f"k: expected a count of updates, at least 1, got {self.k!r}")
        if not 0 < _number("alpha", self.alpha) <= 1:
            raise ValueError(f"alpha: expected a number in (0, 1], got {self.alpha!r}")


def after_rule(
    zeros: Callable[[tuple[int, ...], str], Any],
    lookahead: Lookahead | None = None,
    average: EMA | SWA | None = None,
    master: str | None = None,
) -> Any:
    """Return what follows the rule as the core takes it, with a function that makes the arrays; None for nothing."""
    if lookahead is None and average is None and master is None:
        return None

    def arrays(parameter: Any, dtype: str) -> list[Any]:
        # Zeros do: a copy counts only where its parameter is its rounding, of a new parameter nothing remains, and the
        # others are written before they are read.
        there = {
            "master": master == "float32" and parameter.dtype.itemsize == 2,
            "average": average is not None,
            "slow": lookahead is not None,
            "remainder": master == "split",
            "average_rest": average is not None and dtype == "float32",
        }
        kinds = {"remainder": "int16"}
        return [zeros(parameter.shape, kinds.get(name, dtype)) if there[name] else None for name in _core.KEPT]

    decay, warmup = (average.decay, average.warmup) if isinstance(average, EMA) else (None, False)
    return (
        arrays,
        average and (decay, warmup, average.start, average.every),
        lookahead and (lookahead.k, lookahead.alpha),
    )


def rest_beside(average: Any, rest: Any) -> np.ndarray[Any, Any]:
    """Return what an average has lost, as a state has it: 0 without it, and where the average was changed since.

    What a sum of float32 numbers loses is less than 2 of its last bits, even where the average was the smaller of them.
    """
    a: np.ndarray[Any, Any] = cpu.put(average)
    if rest is None:
        return np.zeros_like(a)
    rest = cpu.put(rest)
    with np.errstate(all="ignore"):
        own = (abs(rest) <= 2 * np.spacing(abs(a))) | ~np.isfinite(a)
    still: np.ndarray[Any, Any] = np.where(own, rest, np.zeros_like(rest))
    return still


def _check_counts(start: int, every: int) -> None:
    if not 0 <= _whole("start", start) < 2**63:
        raise ValueError(f"start: expected a count of updates >= 0, got {start!r}")
    if not 1 <= _whole("every", every) < 2**63:
        raise ValueError(f"every: expected a count of updates, at least 1, got {every!r}")


def _whole(name: str, value: int) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected a whole number, got {value!r}") from None


def _number(name: str, value: float) -> float:
    try:
        return value + 0.0
    except TypeError:
        raise TypeError(f"{name}: expected a number, got {value!r}") from None
