r"""Schedules: a number for every step, as stateless functions of the number of steps already taken.

A schedule is called with t, the number of steps already taken (0 at the first), and remembers nothing; a run that
resumes at step t gets the same numbers. Schedules combine with ``*``, ``+`` and ``.then()``:

>>> lr = rv.schedules.warmup(500) * rv.schedules.cosine(3e-4, 10_000)
>>> lr(499) == rv.schedules.cosine(3e-4, 10_000)(499)
True
"""

from __future__ import annotations

import inspect
import math
import numbers
import operator
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, SupportsIndex, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = [
    "Schedule",
    "constant",
    "cosine",
    "cosine_restarts",
    "exponential",
    "inverse_time",
    "linear",
    "one_cycle",
    "piecewise",
    "polynomial",
    "step",
    "warmup",
]


@dataclass(frozen=True, repr=False)
class Schedule:
    """A function of the number of steps already taken; made by the functions of this module, not by hand.

    ``a * b`` and ``a + b`` take schedules and numbers on either side. ``repr`` is the expression that makes it again.

    Attributes:
        length: steps until the value stays what it is; None if there is no such step, or nothing ever changes.

    >>> rv.schedules.cosine(0.1, 100) * 2
    cosine(0.1, 100) * 2.0
    """

    formula: Callable[..., float]
    arguments: Mapping[str, Any] = field(hash=False)
    length: int | None = None

    __array_ufunc__: ClassVar[None] = None  # np.float32(0.1) * schedule must reach __rmul__, not become an array

    def __call__(self, step: SupportsIndex) -> float:
        """Give the value for a step, where ``step`` is the number of steps already taken.

        Raises:
            ValueError: a negative step.
            TypeError: a step that is not an integer.
        """
        t = operator.index(step)
        if t < 0:
            raise ValueError(f"step: expected the number of steps already taken, >= 0, got {t}")
        return self.formula(t, **self.arguments)

    def __mul__(self, other: Schedule | float) -> Schedule:
        return _combine("*", self, other)

    def __rmul__(self, other: Schedule | float) -> Schedule:
        return _combine("*", other, self)

    def __add__(self, other: Schedule | float) -> Schedule:
        return _combine("+", self, other)

    def __radd__(self, other: Schedule | float) -> Schedule:
        return _combine("+", other, self)

    def then(self, other: Schedule | float, after: int | None = None) -> Schedule:
        """Follow this schedule for ``after`` steps, then ``other``, which starts counting from 0 there.

        Args:
            other: a schedule, or a number that stays.
            after: steps taken with this schedule, ≥ 0; its own ``length`` unless given.

        Raises:
            ValueError: ``after`` negative, or not given for a schedule without a length.

        >>> rv.schedules.linear(0.0, 1.0, 4).then(rv.schedules.exponential(1.0, 0.5)).values(7).tolist()
        [0.0, 0.25, 0.5, 0.75, 1.0, 0.5, 0.25]
        """
        if after is None and self.length is None:
            raise ValueError(f"then: {self!r} has no length of its own; pass after=, the number of its steps")
        first = self.length if after is None else _count("then", "after", after, least=0)
        other = other if isinstance(other, Schedule) else _finite("then", "other", other)
        rest = other.length if isinstance(other, Schedule) else 0
        length = None if rest is None or first is None else first + rest
        before, rest_of = _parts(self), _parts(other)
        joint = _Operator("then", len(before), first or 0, first == self.length)
        return Schedule(_combined, {"parts": (joint, *before, *rest_of)}, length)

    def values(self, n: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Give the values of the first ``n`` steps as a float64 array, ready to plot.

        >>> rv.schedules.warmup(4).values(6)
        array([0.25, 0.5 , 0.75, 1.  , 1.  , 1.  ])
        """
        return np.array([self(t) for t in range(_count("values", "n", n, least=0))], dtype=np.float64)

    def __repr__(self) -> str:
        return _text(_parts(self)) if self.formula is _combined else self._call()

    def _call(self) -> str:
        """``cosine(0.1, 100, end=0.01)``: what has a default is shown only if it differs."""
        name = self.formula.__name__.removeprefix("_")
        shown = []
        for parameter in inspect.signature(globals()[name]).parameters.values():
            value = self.arguments[parameter.name]
            if parameter.default is parameter.empty:
                shown.append(repr(value))
            elif value != parameter.default:
                shown.append(f"{parameter.name}={value!r}")
        return f"{name}({', '.join(shown)})"


def constant(value: float) -> Schedule:
    """Stay at ``value``: f(t) = value.

    >>> rv.schedules.constant(0.1)(1000)
    0.1
    """
    return Schedule(_constant, {"value": _finite("constant", "value", value)})


def linear(start: float, end: float, steps: int) -> Schedule:
    r"""Go from ``start`` to ``end`` on a straight line, then stay.

    .. math:: f(t) = start + (end - start)\, \min(t / steps, 1)

    Args:
        start: the value at t = 0.
        end: the value from t = ``steps`` on.
        steps: steps of the line, ≥ 1.

    Raises:
        ValueError: an argument out of range, named with its value.

    >>> rv.schedules.linear(1.0, 0.0, 4).values(6).tolist()
    [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """
    start, end = _finite("linear", "start", start), _finite("linear", "end", end)
    steps = _count("linear", "steps", steps)
    return Schedule(_linear, {"start": start, "end": end, "steps": steps}, length=steps)


def polynomial(start: float, steps: int, power: float = 1.0, end: float = 0.0) -> Schedule:
    r"""Fall from ``start`` to ``end`` by a power of the part of the run that is left.

    .. math:: f(t) = end + (start - end)\, (1 - \min(t / steps, 1))^{power}

    Args:
        start: the value at t = 0.
        steps: steps until ``end``, ≥ 1.
        power: > 0; 1 is a line, larger falls earlier.
        end: the value from t = ``steps`` on.

    Raises:
        ValueError: an argument out of range, named with its value.

    >>> rv.schedules.polynomial(1.0, 4, power=2).values(5).tolist()
    [1.0, 0.5625, 0.25, 0.0625, 0.0]
    """
    start, end = _finite("polynomial", "start", start), _finite("polynomial", "end", end)
    steps, power = _count("polynomial", "steps", steps), _positive("polynomial", "power", power)
    return Schedule(_polynomial, {"start": start, "steps": steps, "power": power, "end": end}, length=steps)


def cosine(start: float, steps: int, end: float = 0.0) -> Schedule:
    r"""Fall from ``start`` to ``end`` on half a period of a cosine, then stay.

    .. math:: f(t) = end + (start - end)\, \tfrac12 (1 + \cos(\pi \min(t / steps, 1)))

    Args:
        start: the value at t = 0.
        steps: steps until ``end``, ≥ 1.
        end: the value from t = ``steps`` on.

    Raises:
        ValueError: an argument out of range, named with its value.

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017, equation 5.

    >>> rv.schedules.cosine(1.0, 4).values(6).round(4).tolist()
    [1.0, 0.8536, 0.5, 0.1464, 0.0, 0.0]
    """
    start, end = _finite("cosine", "start", start), _finite("cosine", "end", end)
    steps = _count("cosine", "steps", steps)
    return Schedule(_cosine, {"start": start, "steps": steps, "end": end}, length=steps)


def cosine_restarts(start: float, steps: int, factor: int = 1, end: float = 0.0) -> Schedule:
    r"""Fall on a cosine, jump back to ``start`` and fall again, each time ``factor`` times as slowly; never ends.

    .. math:: f(t) = end + (start - end)\, \tfrac12 (1 + \cos(\pi\, t_{cur} / T_i)), \qquad T_i = steps \cdot factor^i

    Here t_cur counts the steps since the last restart.

    Args:
        start: the value at t = 0 and at each restart.
        steps: T₀, steps of the first period, ≥ 1.
        factor: T_mult, an integer ≥ 1.
        end: the value that each period approaches.

    Raises:
        ValueError: an argument out of range, named with its value.

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017, equation 5.

    >>> rv.schedules.cosine_restarts(1.0, 2, factor=2).values(7).round(4).tolist()
    [1.0, 0.5, 1.0, 0.8536, 0.5, 0.1464, 1.0]
    """
    start, end = _finite("cosine_restarts", "start", start), _finite("cosine_restarts", "end", end)
    steps, factor = _count("cosine_restarts", "steps", steps), _count("cosine_restarts", "factor", factor)
    return Schedule(_cosine_restarts, {"start": start, "steps": steps, "factor": factor, "end": end})


def exponential(start: float, factor: float, every: int = 1) -> Schedule:
    r"""Multiply by ``factor`` over each ``every`` steps, smoothly; grows if ``factor`` > 1.

    .. math:: f(t) = start \cdot factor^{t / every}

    Args:
        start: the value at t = 0.
        factor: > 0.
        every: steps in which one whole factor is applied, ≥ 1.

    Raises:
        ValueError: an argument out of range, named with its value.

    >>> rv.schedules.exponential(1.0, 0.25, every=2).values(5).tolist()
    [1.0, 0.5, 0.25, 0.125, 0.0625]
    """
    start, factor = _finite("exponential", "start", start), _positive("exponential", "factor", factor)
    every = _count("exponential", "every", every)
    return Schedule(_exponential, {"start": start, "factor": factor, "every": every})


def step(start: float, every: int, factor: float) -> Schedule:
    r"""Multiply by ``factor`` at once after each ``every`` steps.

    .. math:: f(t) = start \cdot factor^{\lfloor t / every \rfloor}

    Args:
        start: the value of the first ``every`` steps.
        every: steps on one level, ≥ 1.
        factor: > 0.

    Raises:
        ValueError: an argument out of range, named with its value.

    >>> rv.schedules.step(1.0, 2, 0.5).values(6).tolist()
    [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    """
    start, every = _finite("step", "start", start), _count("step", "every", every)
    return Schedule(_step, {"start": start, "every": every, "factor": _positive("step", "factor", factor)})


def inverse_time(start: float, rate: float, power: float = 1.0) -> Schedule:
    r"""Fall as the inverse of time, the decay of the convergence proofs of stochastic gradient descent.

    .. math:: f(t) = start / (1 + rate \cdot t)^{power}

    Args:
        start: the value at t = 0.
        rate: ≥ 0, per step.
        power: > 0; the proofs ask for ½ < power ≤ 1.

    Raises:
        ValueError: an argument out of range, named with its value.

    Source: Robbins and Monro, "A Stochastic Approximation Method", 1951.

    >>> rv.schedules.inverse_time(1.0, 1.0).values(4).round(4).tolist()
    [1.0, 0.5, 0.3333, 0.25]
    """
    start, rate = _finite("inverse_time", "start", start), _finite("inverse_time", "rate", rate)
    if rate < 0:
        raise ValueError(f"inverse_time: rate: expected a number >= 0, got {rate}")
    return Schedule(_inverse_time, {"start": start, "rate": rate, "power": _positive("inverse_time", "power", power)})


def piecewise(boundaries: Sequence[int], values: Sequence[float]) -> Schedule:
    """Take ``values[0]`` before ``boundaries[0]``, ``values[1]`` from that step on, and so forth.

    Args:
        boundaries: rising step counts ≥ 1; the step with t = ``boundaries[i]`` is the first with ``values[i + 1]``.
        values: one more than boundaries.

    Raises:
        ValueError: an argument out of range, boundaries that do not rise, or a wrong number of values.

    >>> rv.schedules.piecewise([2, 3], [1.0, 0.1, 0.01]).values(5).tolist()
    [1.0, 1.0, 0.1, 0.01, 0.01]
    """
    edges = tuple(_count("piecewise", f"boundaries[{i}]", edge) for i, edge in enumerate(boundaries))
    levels = tuple(_finite("piecewise", f"values[{i}]", value) for i, value in enumerate(values))
    if any(a >= b for a, b in pairwise(edges)):
        raise ValueError(f"piecewise: boundaries: expected rising step counts, got {list(edges)}")
    if len(levels) != len(edges) + 1:
        raise ValueError(f"piecewise: values: expected {len(edges) + 1}, one more than boundaries, got {len(levels)}")
    return Schedule(_piecewise, {"boundaries": edges, "values": levels}, length=edges[-1] if edges else None)


def one_cycle(
    peak: float, steps: int, pct_start: float = 0.3, div_factor: float = 25.0, final_div_factor: float = 1e4
) -> Schedule:
    r"""Rise to ``peak`` on a cosine, then fall far below the start; torch's ``OneCycleLR``, step for step.

    .. math:: peak / div\_factor \;\to\; peak \;\to\; peak / (div\_factor \cdot final\_div\_factor)

    The peak is at t = pct_start·steps − 1, the end at t = steps − 1, and the value stays there.

    Args:
        peak: the largest value.
        steps: steps of the whole cycle, ≥ 1.
        pct_start: the part of the steps that rises, in [0, 1).
        div_factor: peak over first value, > 0.
        final_div_factor: first value over last value, > 0.

    Raises:
        ValueError: an argument out of range, named with its value.

    Source: Smith and Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates",
    2018; the two cosines are torch's.

    >>> lr = rv.schedules.one_cycle(1.0, 100); lr(0), lr(29), round(lr(99), 9)
    (0.04, 1.0, 4e-06)
    """
    peak, steps = _finite("one_cycle", "peak", peak), _count("one_cycle", "steps", steps)
    pct_start = _finite("one_cycle", "pct_start", pct_start)
    if not 0 <= pct_start < 1:
        raise ValueError(f"one_cycle: pct_start: expected a number in [0, 1), got {pct_start}")
    arguments = {
        "peak": peak,
        "steps": steps,
        "pct_start": pct_start,
        "div_factor": _positive("one_cycle", "div_factor", div_factor),
        "final_div_factor": _positive("one_cycle", "final_div_factor", final_div_factor),
    }
    return Schedule(_one_cycle, arguments, length=steps)


def warmup(steps: int) -> Schedule:
    r"""Rise to 1 on a straight line in the first ``steps`` steps: a factor for another schedule.

    .. math:: f(t) = \min(1, (t + 1) / steps)

    The first step is not wasted on a rate of 0, and step number ``steps`` is the first with the full rate.

    Args:
        steps: steps of the rise, ≥ 1.

    Raises:
        ValueError: ``steps`` out of range.

    Source: Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017, section 2.2.

    >>> (rv.schedules.warmup(2) * 0.1).values(3).tolist()
    [0.05, 0.1, 0.1]
    """
    steps = _count("warmup", "steps", steps)
    return Schedule(_warmup, {"steps": steps}, length=steps)


# The formulas. Functions of this module, not closures, so that a schedule can be pickled and compared.

Operand: TypeAlias = "Schedule | float"


class _Operator(NamedTuple):
    """What stands in a combination before its operands, those of the left one first."""

    sign: Literal["*", "+", "then"]
    #: How many places the left operand takes.
    left: int
    #: Steps of the first schedule; whether they are its own length.
    after: int = 0
    whole: bool = True


#: A combination as one flat list, however deep it is: Python's own calls would end at some hundred.
Parts: TypeAlias = "tuple[_Operator | Operand, ...]"


def _parts(of: Operand) -> Parts:
    combined = isinstance(of, Schedule) and of.formula is _combined
    parts: Parts = of.arguments["parts"] if combined else (of,)  # type: ignore[union-attr]
    return parts


def _combined(t: int, *, parts: Parts) -> float:
    left_to_do: list[tuple[int, int] | str] = [(0, t)]
    values: list[float] = []
    while left_to_do:
        match left_to_do.pop():
            case "*":
                right = values.pop()
                values[-1] *= right
            case "+":
                right = values.pop()
                values[-1] += right
            case (int(i), int(t)):
                part = parts[i]
                if not isinstance(part, _Operator):
                    values.append(part(t) if isinstance(part, Schedule) else part)
                elif part.sign == "then":
                    left_to_do.append((i + 1, t) if t < part.after else (i + 1 + part.left, t - part.after))
                else:
                    left_to_do += [part.sign, (i + 1 + part.left, t), (i + 1, t)]
    return values[0]


def _text(parts: Parts) -> str:
    """Give the expression; in parentheses what would group otherwise: a·(b·c) and (a·b)·c may differ in a bit."""
    pieces: list[str] = []
    left_to_do: list[int | str] = [0]
    while left_to_do:
        match left_to_do.pop():
            case str(piece):
                pieces.append(piece)
            case int(i):
                part = parts[i]
                if not isinstance(part, _Operator):
                    pieces.append(repr(part))
                    continue
                first, second = i + 1, i + 1 + part.left
                signs = [p.sign if isinstance(p := parts[at], _Operator) else "" for at in (first, second)]
                if part.sign == "then":
                    inside = signs[0] in ("*", "+"), False
                    middle, end = ".then(", ")" if part.whole else f", after={part.after})"
                else:
                    inside = part.sign == "*" and signs[0] == "+", signs[1] in ("*", "+")
                    middle, end = f" {part.sign} ", ""
                left: list[int | str] = ["(", first, ")"] if inside[0] else [first]
                right: list[int | str] = ["(", second, ")"] if inside[1] else [second]
                left_to_do += [*left, middle, *right, end][::-1]
    return "".join(pieces)


def _constant(t: int, *, value: float) -> float:
    return value


def _mix(start: float, end: float, left: float) -> float:
    return left * start + (1 - left) * end  # not end + left·(start − end), which misses start in the last bit


def _linear(t: int, *, start: float, end: float, steps: int) -> float:
    return end if t >= steps else _mix(start, end, 1 - t / steps)


def _polynomial(t: int, *, start: float, steps: int, power: float, end: float) -> float:
    return end if t >= steps else _mix(start, end, (1 - t / steps) ** power)


def _half_cosine(start: float, end: float, part: float) -> float:
    return _mix(start, end, 0.5 * (1 + math.cos(math.pi * part)))


def _cosine(t: int, *, start: float, steps: int, end: float) -> float:
    return end if t >= steps else _half_cosine(start, end, t / steps)


def _cosine_restarts(t: int, *, start: float, steps: int, factor: int, end: float) -> float:
    if factor == 1:
        return _half_cosine(start, end, t % steps / steps)
    while t >= steps:
        t -= steps
        steps *= factor
    return _half_cosine(start, end, t / steps)


def _exponential(t: int, *, start: float, factor: float, every: int) -> float:
    return start * _power(factor, t / every)


def _step(t: int, *, start: float, every: int, factor: float) -> float:
    return start * _power(factor, t // every)


def _power(factor: float, exponent: float) -> float:
    try:
        return float(factor**exponent)
    except OverflowError:
        return math.inf  # the optimizer refuses it by name and step; Python's own error names neither


def _inverse_time(t: int, *, start: float, rate: float, power: float) -> float:
    return start / _power(1 + rate * t, power)


def _piecewise(t: int, *, boundaries: tuple[int, ...], values: tuple[float, ...]) -> float:
    return values[bisect_right(boundaries, t)]


def _one_cycle(
    t: int, *, peak: float, steps: int, pct_start: float, div_factor: float, final_div_factor: float
) -> float:
    first = peak / div_factor
    top, last = pct_start * steps - 1, steps - 1  # top is no whole number in general, as in torch
    if t >= last:
        return first / final_div_factor
    if t < top:
        return _half_cosine(first, peak, t / top)
    return _half_cosine(peak, first / final_div_factor, (t - top) / (last - top))


def _warmup(t: int, *, steps: int) -> float:
    return min(1.0, (t + 1) / steps)


def _combine(sign: Literal["*", "+"], left: Operand, right: Operand) -> Schedule:
    """Join two parts; as long as the longer one, without a length if a schedule in it has none."""
    parts = [part if isinstance(part, Schedule) else _finite("schedule", "number", part) for part in (left, right)]
    lengths = [part.length for part in parts if isinstance(part, Schedule)]
    known = [length for length in lengths if length is not None]
    length = max(known) if len(known) == len(lengths) else None
    of = [_parts(part) for part in parts]
    return Schedule(_combined, {"parts": (_Operator(sign, len(of[0])), *of[0], *of[1])}, length)


def _finite(function: str, name: str, value: float) -> float:
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{function}: {name}: expected a number, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{function}: {name}: expected a finite number, got {value}")
    return float(value)


def _positive(function: str, name: str, value: float) -> float:
    value = _finite(function, name, value)
    if value <= 0:
        raise ValueError(f"{function}: {name}: expected a number > 0, got {value}")
    return value


def _count(function: str, name: str, value: SupportsIndex, least: int = 1) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{function}: {name}: expected an integer, got {value!r}; write int(...) or 10_000") from None
    if count < least:
        raise ValueError(f"{function}: {name}: expected an integer >= {least}, got {count}")
    return count
