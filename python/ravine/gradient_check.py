"""Is this gradient the derivative of this loss? A check by how fast the error vanishes, not by how small it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ravine import _core
from ravine.backends import backend_of
from ravine.hessian import generator
from ravine.objective import (
    Array,
    Leaves,
    LossAndGrad,
    Precision,
    Tree,
    adopt_params,
    check_function,
    evaluated,
    holds_float32,
    number,
    numbers,
)

__all__ = ["GradientCheck", "check_gradient"]

EPSILONS = tuple(10.0 ** (-k / 2) for k in range(2, 11))  # 0.1 down to 1e-5
#: C of the floor: u is half an ulp of 1, and a loss is a sum of many terms, each rounded.
ROUNDING = 64.0
#: The order is a limit for ε → 0: errors at larger ε would only blur it.
FITTED = 3
_LEAST_ORDER = {"one_sided": 1.5, "central": 2.2}
_FLOAT32 = 2.0**-24


@dataclass(frozen=True)
class GradientCheck:
    """What `check_gradient` found; true if the gradient passed.

    Attributes:
        passed: whether the gradient agrees with the loss.
        order: p of the fitted error ~ εᵖ; inf if fewer than two errors are above the floor.
        errors: the error at each ε.
        epsilons: the lengths ε of the step, falling.
        floor: errors up to here are rounding.
        slope: ⟨J, Δ⟩/ε, the derivative along the direction as the gradient has it.
        smallest_error: the smallest error of the slope, of either sign, that would have failed this check; inf if none.
            Of a wrong gradient, what the floor alone would let pass.
        smallest_relative_error: the same in units of the slope: a gradient that is wrong by this factor is just seen.
        message: the verdict in words; names the parameters that are wrong, and kinks.
    """

    passed: bool
    order: float
    errors: tuple[float, ...]
    epsilons: tuple[float, ...]
    floor: float
    slope: float
    smallest_error: float
    smallest_relative_error: float
    message: str

    def __bool__(self) -> bool:
        return self.passed


def check_gradient(
    loss_and_grad: LossAndGrad,
    params: Tree,
    *,
    method: Literal["central", "one_sided"] = "central",
    rng: np.random.Generator | int | None = None,
    epsilons: Sequence[float] = EPSILONS,
    rounding: float = ROUNDING,
) -> GradientCheck:
    r"""Compare a gradient J with the loss along one random direction, at several step lengths ε.

    .. math::
        \text{one-sided:} &\quad |L(w + \Delta) - L(w) - \langle J, \Delta \rangle| = o(\varepsilon) \\
        \text{central:} &\quad |\tfrac12 (L(w + \Delta) - L(w - \Delta)) - \langle J, \Delta \rangle|
            = o(\varepsilon^2), \qquad \lVert \Delta \rVert = \varepsilon

    A wrong gradient leaves an error of order 1, a right one of order 2 (one-sided) or 3 (central). The order is the
    slope of log error against log ε, by least squares over the three smallest ε whose error is above the rounding
    floor, since it is a limit for ε → 0. The gradient passes if the errors are at the floor, but for one at most, or if
    the order is above 1.5 (one-sided) or 2.2 (central). The fall from the last error above the floor to the floor
    itself counts as a slope too: so a kink at some distance, as of ReLU, does not fail a right gradient, and is
    reported.

    An error e of the gradient shows as ⟨e, Δ⟩/ε, which is about ‖e‖/√n of n elements. The smallest that is seen is the
    floor over the second longest ε, or more where truncation hides it: the result's ``smallest_error`` is that of these
    very losses.

    Args:
        loss_and_grad: a function of ``params`` that gives (loss, gradients in the nesting of params). It must give the
            same loss for the same parameters: fix its random numbers.
        params: array, or any nesting of dict, list and tuple of arrays (NumPy, CuPy, or another library's that share
            their memory, as torch's tensors do); changed in place during the check and restored bit for bit, also if an
            error is raised.
        method: ``"central"``, the sharper test, or ``"one_sided"``.
        rng: a NumPy Generator or a seed for the direction; the same direction each time unless given.
        epsilons: lengths of Δ over all parameters together, at least two.
        rounding: C of the floor C·u·max(|L| + Σ|Jᵢwᵢ|), u half an ulp of 1 in the coarsest dtype of parameters,
            gradients and loss. The sum is what rounding w alone does to the loss; it matters where large terms cancel.
            Where losses that are Python's floats, or float64 gradients, hold nothing but float32's numbers as they
            change, they were computed in float32, and count as such.

    Returns:
        A `GradientCheck`, which is true if the gradient passed.

    Raises:
        TypeError: a parameter that is no writable floating array of 16, 32 or 64 bits, or a gradient of another array
            library than its parameter, named by its path.
        ValueError: gradients of another nesting or shape, a loss or gradient that is not finite, a loss that differs
            between two calls with the same parameters, or an argument out of range.

    float64 is recommended: in float32 the floor hides more, and kinks lie denser than steps can be short. JAX computes
    in float32, whatever the parameters are, unless ``jax_enable_x64`` is set; the message says so. Where parameters are
    far smaller than 0.1, pass smaller epsilons.

    >>> w = np.array([1.0, 2.0])
    >>> check = rv.check_gradient(lambda w: ((w**4).sum(), 4 * w**3), w)
    >>> bool(check), check.smallest_relative_error < 1e-7
    (True, True)
    >>> print(rv.check_gradient(lambda w: ((w**4).sum(), 3 * w**3), w).message)
    wrong gradient: the error falls with order 1.00 in ε, expected more than 2.2; wrong in params
    """
    steps = _epsilons(epsilons)
    if method not in _LEAST_ORDER:
        raise ValueError(f"method: expected 'central' or 'one_sided', got {method!r}")
    rounding = number("rounding", rounding, "a finite number ≥ 0", lambda c: 0 <= c < math.inf)
    check_function("loss_and_grad", loss_and_grad)
    leaves = adopt_params(params)
    rng = generator(0 if rng is None else rng)
    direction = [backend_of(array).put(rng.standard_normal(array.shape)) for array in leaves.values()]
    with _Line(loss_and_grad, params, leaves, rounding) as line:
        line.start()
        result = line.check(direction, steps, method)
        if result.passed:
            return result
        wrong = []
        for i, (name, array) in enumerate(leaves.items()):
            alone = [d if i == j else 0 * d for j, d in enumerate(direction)]
            if array.size and (len(leaves) == 1 or not line.check(alone, steps, method).passed):
                wrong.append(name)
    return replace(result, message=f"{result.message}; wrong in {', '.join(wrong) or 'no single parameter'}")


class _Line(_core.Undone):
    """The loss along lines through the place where the parameters are."""

    def __init__(self, function: LossAndGrad, params: Tree, leaves: Leaves, rounding: float) -> None:
        self.function, self.params, self.leaves = function, params, leaves
        self.saved = [array.copy() for array in leaves.values()]
        self.precision, self.rounding = Precision(leaves), rounding
        self.losses: set[float] = set()
        self.held: list[bool] = []

    def undo(self) -> None:
        """Put the parameters back."""
        for array, saved in zip(self.leaves.values(), self.saved, strict=True):
            array[...] = saved

    def start(self) -> None:
        """Take L(w) and J, and make sure that a second call agrees."""
        self.loss, self.gradient, self.size = self.evaluate("w")
        again, _, _ = self.evaluate("w, the second time")
        unit = max(self.precision.unit, _FLOAT32 if holds_float32(np.array([self.loss, again])) else 0.0)
        if abs(again - self.loss) > self.rounding * unit * sum(self.size):
            raise ValueError(
                f"loss_and_grad: expected one loss for the same parameters, got {self.loss!r} and {again!r}; "
                "fix its random numbers"
            )

    def evaluate(self, where: str) -> tuple[float, list[Array], tuple[float, float]]:
        """Give L, J in float64, and |L| and Σ|Jᵢwᵢ|, which scale the rounding, where the parameters are now."""
        loss, gradient = evaluated(self.function(self.params), self.leaves, self.precision)
        if not math.isfinite(loss):
            raise ValueError(f"loss_and_grad: expected a finite loss, got {loss} at {where}; try smaller epsilons")
        self.losses.add(loss)
        terms = 0.0
        for g, (name, array) in zip(gradient, self.leaves.items(), strict=True):
            if not bool(np.isfinite(g).all()):
                raise ValueError(f"loss_and_grad: expected finite gradients, got others in {name} at {where}")
            terms += float(abs(g * array).sum())
        return loss, gradient, (abs(loss), terms)

    def move(self, unit: list[Array], distance: float) -> tuple[float, tuple[float, float]]:
        """Go to w + distance·unit; give L there, and what scales its rounding."""
        for array, saved, u in zip(self.leaves.values(), self.saved, unit, strict=True):
            array[...] = saved + distance * u
        loss, gradient, size = self.evaluate(f"distance {abs(distance):g} from w")
        if self.precision.unit < _FLOAT32:
            changed = [g[g != before] for g, before in zip(gradient, self.gradient, strict=True)]
            self.held += [holds_float32(g) for g in changed if g.size]
        return loss, size

    def look_closer(self, size: float) -> None:
        """Take note of losses and gradients that were computed in float32, whatever their type."""
        if self.precision.unit >= _FLOAT32:
            return
        if self.held and all(self.held):
            self.precision.take("gradients", _FLOAT32)
        losses = np.array(sorted(self.losses))
        # Where large terms cancel, float64 leaves few digits, too: of the order of its own roundoff in the terms, 2⁻⁵³.
        coarse = math.ldexp(1.0, math.frexp(size)[1] - 45)
        if len(losses) > 3 and holds_float32(losses) and not (losses % coarse).any():
            self.precision.take("loss", _FLOAT32)

    def check(self, direction: list[Array], steps: tuple[float, ...], method: str) -> GradientCheck:
        length = math.sqrt(sum(float((d * d).sum()) for d in direction))
        unit = [d / length for d in direction]
        slope = sum(float((g * u).sum()) for g, u in zip(self.gradient, unit, strict=True))
        residuals, bends, changes, sizes = [], [], [], [self.size]
        for epsilon in steps:
            (up, size_up), (down, size_down) = self.move(unit, epsilon), self.move(unit, -epsilon)
            change = 0.5 * (up - down) if method == "central" else up - self.loss
            residuals.append(change - epsilon * slope)
            bends.append(abs((up - self.loss) + (down - self.loss)))
            changes += [abs(up - self.loss), abs(epsilon * slope)]
            sizes += [size_up, size_down]
        self.look_closer(max(map(sum, sizes)))

        def floor_of(factor: float) -> float:
            """Return the floor if the gradient were longer by this factor."""
            largest = max(loss + factor * terms for loss, terms in sizes)
            return max(self.rounding * self.precision.unit * largest, float(np.finfo(np.float64).tiny))

        floor, errors = floor_of(1.0), [abs(residual) for residual in residuals]
        order, least = _order(steps, errors, floor), _LEAST_ORDER[method]
        # What else a wrong gradient's residuals hold cannot be told from its error: the floor alone is left.
        left = residuals if order > least else [0.0] * len(steps)
        smallest = _smallest_error(steps, left, abs(slope), floor_of, least)
        relative = smallest / abs(slope) if slope else math.inf
        if order == math.inf:
            message = "right gradient: the errors are at the rounding floor"
        elif order > least:
            message = f"right gradient: the error falls with order {order:.2f} in ε"
        else:
            message = f"wrong gradient: the error falls with order {order:.2f} in ε, expected more than {least}"
        if order > least:
            if order == math.inf and max(changes) <= floor:
                message += ", but so are all changes of the loss, which says little"
            if smallest == math.inf:
                message += (
                    "; no error of the slope would have been seen: pass longer epsilons, or compute in a finer dtype"
                )
            else:
                message += f"; an error of the slope is seen from {smallest:.2g} on, {relative:.2g} of it"
        return GradientCheck(
            order > least,
            order,
            tuple(errors),
            steps,
            floor,
            slope,
            smallest,
            relative,
            message + self.precision.message + _kink(steps, bends, floor),
        )


def _smallest_error(
    steps: Sequence[float],
    residuals: Sequence[float],
    slope: float,
    floor_of: Callable[[float], float],
    least: float,
) -> float:
    """Return the smallest error of the slope from which on, of either sign, the check fails; inf if none would be seen.

    An error δ adds εδ to what was measured, which is truncation and rounding; and it lengthens the gradient that scales
    the floor.
    """

    def seen(error: float) -> bool:
        floor = floor_of(1 + error / slope if slope else 1.0)
        return all(
            _order(steps, [abs(r + sign * e * error) for r, e in zip(residuals, steps, strict=True)], floor) <= least
            for sign in (-1, 1)
        )

    # Two errors above the floor are needed; truncation may hide more.
    base = floor_of(1.0) / steps[1]
    high = base * 2.0**40
    if not seen(high):
        return math.inf
    while high > base / 4 and seen(high / 2):
        high /= 2
    low = high / 2
    for _ in range(6):
        middle = (low + high) / 2
        low, high = (low, middle) if seen(middle) else (middle, high)
    return high


def _order(steps: Sequence[float], errors: Sequence[float], floor: float) -> float:
    """Fit p of error ~ εᵖ to the smallest errors above the floor; inf if there are not two. Steps fall."""
    above = [k for k, error in enumerate(errors) if error > floor]
    if len(above) < 2:
        return math.inf
    x = np.log([steps[k] for k in above[-FITTED:]])
    y = np.log([errors[k] for k in above[-FITTED:]])
    x -= x.mean()
    fitted = float((x * y).sum() / (x * x).sum())
    last = above[-1]
    if last + 1 == len(steps):
        return fitted
    # The next error is at most the floor, which bounds the order from below. An error of order 1 gets at most 1 here.
    return max(fitted, math.log(errors[last] / floor) / math.log(steps[last] / steps[last + 1]))


def _kink(steps: Sequence[float], bends: Sequence[float], floor: float) -> str:
    """Report where |L(w+Δ) − 2L(w) + L(w−Δ)| does not vary as a smooth function's, about as ε².

    A jump in slope at distance d adds an amount proportional to ε − d as soon as ε > d: an order near 1 if d ≪ ε, and a
    sudden rise where ε passes d.
    """
    for k in reversed(range(len(steps) - 1)):
        if bends[k] <= floor:
            continue
        order = math.log(bends[k] / max(bends[k + 1], floor)) / math.log(steps[k] / steps[k + 1])
        if order > 6 or (order < 1.5 and bends[k + 1] > floor):
            return f"; the slopes on the two sides of w differ within ε = {steps[k]:.2g}, as at a kink"
    return ""


def _epsilons(epsilons: Sequence[float]) -> tuple[float, ...]:
    steps = tuple(sorted(numbers("epsilons", epsilons), reverse=True))
    if len(set(steps)) < 2 or not all(0 < e < math.inf for e in steps):
        raise ValueError(f"epsilons: expected at least two different finite lengths > 0, got {list(steps)}")
    return tuple(dict.fromkeys(steps))
