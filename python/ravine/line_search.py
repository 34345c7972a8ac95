"""How far to go along a direction: strong Wolfe, on a loss that may be rounded, huge, tiny, or not finite far out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ravine.bounds import Box
from ravine.objective import Array, Objective

__all__ = ["Line", "Place", "at_precision", "ldexp", "normalized", "scaled", "search"]

#: c₁ and c₂ of the strong Wolfe conditions: what Nocedal and Wright recommend for quasi-Newton and Newton directions.
DECREASE, CURVATURE = 1e-4, 0.9
#: How much shorter the next trial is where the loss is not finite, or does not fall.
SHORTER = 0.1
#: How often that is done; where the loss is 0 nothing else ends it.
SHORTENINGS = 30
#: C of the floor C·u·(|L| + Σ|gᵢwᵢ|) below which a change of the loss is rounding.
ROUNDING = 8.0
#: A bracket that promises less than this of the floor is not searched further: the floor is a bound, seldom reached.
NOTHING = 1 / 64
#: How many trials of a search follow the interpolation; 20 of them reach the end of float64.
TRIALS = 20
#: How far a step is extended at most, in units of the last extension; squared from the fourth on.
EXTENSION = 4.0
#: A bracket that two trials have not shortened to this share is halved.
SHRINK = 0.66
#: The longest step, as there is no limit to how large parameters may be.
_LONGEST = 1e308
#: How many bits a scaled loss may stand above the slope, of float64's 1024.
_HEADROOM = 1000
#: The smallest number above 0: what a loss is rounded to at least.
_SMALLEST = 5e-324


@dataclass(frozen=True)
class Place:
    """A point, which is exactly what the parameters hold there, with its finite loss and gradient.

    ``free`` is the gradient without what bounds hold back; None without bounds.
    """

    x: Array
    loss: float
    gradient: Array
    free: Array | None = None

    @property
    def norm(self) -> float:
        """The largest absolute element of the gradient, of its free part under bounds."""
        return float(abs(self.gradient if self.free is None else self.free).max())


class Line:
    """The loss along a direction, as a function of the step α; remembers what it has seen.

    Losses and slopes are kept in units of 2ᵏ, so that those of any finite loss are finite: no g·d overflows.

    Attributes:
        loss: the loss at 0.
        slope: the derivative at 0, < 0 if the direction descends.
        trials: α → (loss, slope) as far as they are finite, else (inf, inf): too far.
        beyond: α → what was not finite there: ``"unbounded"`` (a loss of −inf), ``"overflow"`` (inf), ``"nan"``.
        floor: changes of the loss up to here are rounding.
        best: α of the lowest loss that may be accepted, with that loss and the gradient, in their own units.
        limit: the largest α within the bounds.
    """

    def __init__(
        self,
        objective: Objective,
        evaluate: Callable[[Array], tuple[float, Array]],
        start: Place,
        direction: Array,
        box: Box | None = None,
    ) -> None:
        self._objective, self._evaluate, self._box = objective, evaluate, box
        self.start, self.direction = start, direction
        self._unit, self._length = normalized(direction)
        g, steepness = normalized(start.gradient)
        x, distance = normalized(start.x)
        self._exponent = max(self._length + steepness, math.frexp(start.loss)[1] - _HEADROOM)
        self.loss = self.scaled(start.loss)
        self.slope = self.scaled(float(g @ self._unit), self._length + steepness)
        size = abs(self.loss) + self.scaled(float(abs(g * x).sum()), steepness + distance)
        self.floor = ROUNDING * max(objective.roundoff * size, self.scaled(_SMALLEST))
        self.limit = math.inf if box is None else box.reach(start.x, direction)
        self.trials: dict[float, tuple[float, float]] = {}
        self.beyond: dict[float, str] = {}
        self.best: tuple[float, float, Array] | None = None
        self._last: tuple[float, float, Array] | None = None

    def scaled(self, value: float, exponent: int = 0) -> float:
        """Return value·2^exponent in the units of the line."""
        return ldexp(value, exponent - self._exponent)

    def at(self, alpha: float) -> tuple[float, float]:
        """Return loss and slope at a step, evaluated once."""
        if alpha not in self.trials:
            true, gradient = self._evaluate(self._point(alpha))
            loss = slope = math.inf
            if math.isfinite(true) and bool(self._objective.xp.isfinite(gradient).all()):
                g, exponent = normalized(gradient)
                loss, slope = self.scaled(true), self.scaled(float(g @ self._unit), exponent + self._length)
            if not (math.isfinite(loss) and math.isfinite(slope)):
                self.beyond[alpha] = _what(true, gradient, self._objective.xp)
                loss = slope = math.inf
            self.trials[alpha] = loss, slope
            self._last = alpha, true, gradient
            if self._acceptable(alpha, gradient) and (self.best is None or loss < self.trials[self.best[0]][0]):
                self.best = self._last
        return self.trials[alpha]

    def falls(self, alpha: float) -> bool:
        """Whether the loss falls by c₁ of what the slope at 0 promises; or at all, if that is no more than rounding."""
        loss, promised = self.trials[alpha][0], -alpha * self.slope
        return loss <= self.loss - DECREASE * promised or (loss < self.loss and promised <= self.floor)

    def _acceptable(self, alpha: float, gradient: Array) -> bool:
        """Whether the loss falls enough; or not at all, being rounded, where the gradient does."""
        if not self.falls(alpha):
            return False
        return (
            self.trials[alpha][0] < self.loss or self._place(self._point(alpha), 0.0, gradient).norm < self.start.norm
        )

    def place(self, wolfe: float | None = None) -> Place | None:
        """Go to the last step, if that is the one that is given, or else to the best so far; return what is there."""
        chosen = self._last if self._last is not None and self._last[0] == wolfe else self.best
        if chosen is None:
            return None
        alpha, loss, gradient = chosen
        return self._place(self.go(alpha), loss, gradient)

    def _place(self, x: Array, loss: float, gradient: Array) -> Place:
        return Place(x, loss, gradient, None if self._box is None else self._box.free(x, gradient))

    def go(self, alpha: float) -> Array:
        """Move the parameters, and return where they are: rounded."""
        self._objective.move(self._point(alpha))
        return self._objective.point()

    def moves(self, alpha: float) -> bool:
        """Whether a step changes any parameter at all."""
        return bool((self.go(alpha) != self.start.x).any())

    def _point(self, alpha: float) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            x = self.start.x + alpha * self.direction
        return x if self._box is None else self._box.clip(x)


def _what(loss: float, gradient: Array, xp: Any) -> str:
    if loss == -math.inf:
        return "unbounded"
    return "nan" if math.isnan(loss) or bool(xp.isnan(gradient).any()) else "overflow"


def search(line: Line, *, lengthen: bool = False) -> Place | None:
    """Return a place with a lower loss, of strong Wolfe's if that can be found; None if there is no lower one.

    A step of 1 is tried first. Where the loss is not finite the step was too long. ``lengthen`` makes the first step
    longer where it would be lost in rounding: of the parameters, or of the loss.
    """
    if not -math.inf < line.slope < 0:
        return None
    first = min(1.0, line.limit)
    if lengthen:
        most = min(_LONGEST, line.limit)
        while first < most and (-first * line.slope <= line.floor or not line.moves(first)):
            first = min(first / SHORTER, most)
    elif not line.moves(first):
        return None
    wolfe = _interpolate(line, first)
    return line.place(wolfe) or _backtrack(line)


@dataclass(frozen=True)
class _Trial:
    """φ and φ′ at a step: the loss along the line, less a multiple of the step while the first stage lasts."""

    at: float
    loss: float
    slope: float

    def less(self, slope: float) -> _Trial:
        return _Trial(self.at, self.loss - slope * self.at, self.slope - slope)


def _interpolate(line: Line, trial: float) -> float | None:
    """Return a step of strong Wolfe's, or None: there is none within some trials, or within rounding.

    Source: Moré and Thuente, "Line Search Algorithms with Guaranteed Sufficient Decrease", 1994: sections 2 and 4.
    """
    low: _Trial = _Trial(0.0, line.loss, line.slope)
    high: _Trial | None = None
    end, wall = min(line.limit, _LONGEST), False
    first_stage, widths, extension, extended = True, (math.inf, math.inf), EXTENSION, 0
    for _ in range(TRIALS):
        loss, slope = line.at(trial)
        if loss == math.inf:
            end, wall = trial, True
            trial = _shorter(low.at, end)
            if not line.moves(trial):
                break
            continue
        falls = line.falls(trial)
        if falls and (abs(slope) <= CURVATURE * -line.slope or (trial == line.limit and slope <= 0)):
            return trial
        first_stage = first_stage and not (falls and slope >= 0)
        here = _Trial(trial, loss, slope)
        least, most = (
            (trial + 1.1 * (trial - low.at), trial + extension * (trial - low.at))
            if high is None
            else sorted((low.at, high.at))
        )
        # Until a step falls enough and the slope turns, the excess over the fall that is asked for is minimised.
        excess = DECREASE * line.slope if first_stage and loss <= low.loss and not falls else 0.0
        a, b, c = low.less(excess), here.less(excess), None if high is None else high.less(excess)
        trial = _next(a, b, c, least, most)
        if b.loss > a.loss:
            high = here
        else:
            high, low = (low if b.slope * a.slope < 0 else high), here
        if high is not None:
            width = abs(high.at - low.at)
            if width * -line.slope <= NOTHING * line.floor:
                break
            if width >= SHRINK * widths[0]:
                trial = low.at + 0.5 * (high.at - low.at)
            widths = widths[1], width
        elif trial >= most:
            extended += 1
            extension = min(extension * extension, _LONGEST) if extended > 3 else extension
        if trial >= end and high is None:
            trial = _shorter(low.at, end) if wall else end
        if trial in line.trials or not math.isfinite(trial):
            break
    return None


def _shorter(good: float, bad: float) -> float:
    """Return a step between one that is good and one that is too long; where they differ in size, of a size between."""
    if good == 0:
        return SHORTER * bad
    return math.sqrt(good) * math.sqrt(bad) if bad > 4 * good else 0.5 * (good + bad)


def _next(low: _Trial, here: _Trial, high: _Trial | None, least: float, most: float) -> float:
    """Choose the next step from the best so far, the last, and the other end of the bracket if there is one."""
    secant = here.at + here.slope / (here.slope - low.slope) * (low.at - here.at) if here.slope != low.slope else most
    cubic = _cubic(low, here)
    if here.loss > low.loss:
        width = here.at - low.at
        parabola = low.at + 0.5 * low.slope / ((low.loss - here.loss) / width + low.slope) * width
        if cubic is None:
            return parabola
        return cubic if abs(cubic - low.at) < abs(parabola - low.at) else 0.5 * (cubic + parabola)
    if here.slope * low.slope < 0:
        return secant if cubic is None or abs(cubic - here.at) <= abs(secant - here.at) else cubic
    ahead = most if here.at > low.at else least
    if abs(here.slope) < abs(low.slope):
        if cubic is None or (cubic - here.at) * (here.at - low.at) <= 0:
            cubic = ahead
        if high is None:
            farther = cubic if abs(cubic - here.at) > abs(secant - here.at) else secant
            return min(max(farther, least), most)
        nearer = cubic if abs(cubic - here.at) < abs(secant - here.at) else secant
        inside = here.at + SHRINK * (high.at - here.at)
        return min(nearer, inside) if here.at > low.at else max(nearer, inside)
    if high is None:
        return ahead
    cubic = _cubic(high, here)
    return 0.5 * (here.at + high.at) if cubic is None else cubic


def _cubic(a: _Trial, b: _Trial) -> float | None:
    """Return the minimum of the cubic through two losses and slopes, if it has one; Nocedal and Wright, eq. 3.59."""
    width = b.at - a.at
    d1 = a.slope + b.slope + 3 * (a.loss - b.loss) / width
    size = max(abs(d1), abs(a.slope), abs(b.slope))
    if not 0 < size < math.inf:
        return None
    square = (d1 / size) ** 2 - a.slope / size * (b.slope / size)
    if square < 0:
        return None
    d2 = math.copysign(size * math.sqrt(square), width)
    divisor = b.slope - a.slope + 2 * d2
    return None if divisor == 0 else b.at - width * (b.slope + d2 - d1) / divisor


def _backtrack(line: Line) -> Place | None:
    """Go on to shorter steps than were tried, as long as what they promise is more than rounding."""
    alpha = min(line.trials)
    for _ in range(SHORTENINGS):
        alpha *= SHORTER
        if alpha * -line.slope <= line.floor or not line.moves(alpha):
            break
        line.at(alpha)
        if line.best is not None:
            break
    return line.place()


def at_precision(line: Line) -> bool:
    """Whether rounding explains that no step of the line lowers the loss, rather than a wrong gradient or a kink.

    It does not if the shortest steps that say anything raise the loss in proportion to their length, which a gradient
    excludes; nor if the shortest step's slopes at both ends promise a lower loss, and it is not there.
    """
    clear = ROUNDING * line.floor
    finite = sorted((a, loss - line.loss, slope) for a, (loss, slope) in line.trials.items() if loss < math.inf)
    rises = [(a, rise) for a, rise, _ in finite if rise > clear][:2]
    if len(rises) == 2 and math.log(rises[1][1] / rises[0][1]) < 1.5 * math.log(rises[1][0] / rises[0][0]):
        return False
    # By the trapezoidal rule. None of the steps lowers the loss, or this would not be asked.
    promises = [0.5 * a * (line.slope + slope) for a, _, slope in finite if -a * line.slope > clear]
    return not promises or promises[0] > -clear


def normalized(x: Array) -> tuple[Array, int]:
    """Return x·2⁻ᵉ, whose largest absolute element is in [½, 1), and e: its squares neither overflow nor all vanish.

    Nothing is rounded but what is 2⁻¹⁰⁷⁴ of the largest. Where that is 0 or not finite, x comes back.
    """
    largest = float(abs(x).max()) if x.size else 0.0
    if not 0 < largest < math.inf:
        return x, 0
    exponent = math.frexp(largest)[1]
    return scaled(x, -exponent), exponent


def scaled(x: Array, exponent: int) -> Array:
    """Return x·2ᵉ, ±inf where that is too large."""
    # In steps, as 2ᵉ itself may be beyond float64.
    with np.errstate(over="ignore", under="ignore"):
        while exponent:
            part = max(-1000, min(1000, exponent))
            x, exponent = x * 2.0**part, exponent - part
    return x


def ldexp(x: float, exponent: int) -> float:
    """Return x·2ᵉ, ±inf where that is too large."""
    try:
        return math.ldexp(x, exponent)
    except OverflowError:
        return math.copysign(math.inf, x)
