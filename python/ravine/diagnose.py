"""What to do when training fails: where the parameters stand, what a step does there, and how the layers fare.

`critical_point`, `escape_saddle`, `step_report` and `sharpness` look at the curvature, `noise_scale` at the batches,
`activation_report` at the layers. Each returns numbers, and a ``message`` that says in words what follows from them.
Parameters are restored bit for bit, also if an error is raised; only `escape_saddle` moves them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from ravine.activations import ActivationReport, LayerReport, activation_report
from ravine.hessian import Eigenvalues, Hvp, Operator, extremes, generator
from ravine.noise import NoiseScale, noise_scale
from ravine.norms import length
from ravine.objective import Array, LossAndGrad, Objective, Tree, integer, number, numbers
from ravine.trees import leaves as leaves_of

__all__ = [
    "ActivationReport",
    "CriticalPoint",
    "Escape",
    "LayerReport",
    "NoiseScale",
    "Sharpness",
    "StepReport",
    "activation_report",
    "critical_point",
    "escape_saddle",
    "noise_scale",
    "sharpness",
    "step_report",
]

Host: TypeAlias = np.ndarray[Any, Any]
Kind: TypeAlias = Literal["not critical", "minimum", "maximum", "saddle", "flat", "undecided"]
Bounds: TypeAlias = tuple[float, float]

#: An eigenvalue counts as zero below this share of max|λ|, or below twice its error.
CURVATURE_TOL = 1e-6
#: More than this between largest and smallest eigenvalue, and one rate for all directions is slow.
ILL_CONDITIONED = 100.0
DISTANCES = tuple(k / 10 for k in range(-10, 11))


@dataclass(frozen=True, eq=False)
class CriticalPoint:
    """What `critical_point` found.

    Attributes:
        kind: ``"minimum"``, ``"maximum"``, ``"saddle"``; ``"flat"``: an end of the spectrum is zero to within the
            threshold, and the second order says no more; ``"undecided"``: errors are too large to say even that;
            ``"not critical"``: the gradient is too long.
        gradient_norm: ‖g‖.
        gradient_threshold: up to here a gradient counts as zero.
        smallest: the smallest eigenvalue of the Hessian.
        largest: the largest one.
        errors: how far each may be off.
        threshold: τ; an eigenvalue between −τ and τ counts as zero.
        message: the verdict in words, with how certain it is.
    """

    kind: Kind
    gradient_norm: float
    gradient_threshold: float
    smallest: float
    largest: float
    errors: tuple[float, float]
    threshold: float
    message: str


@dataclass(frozen=True, eq=False)
class Escape:
    """What `escape_saddle` did.

    Attributes:
        distance: α, how far the parameters moved.
        direction: u, of length 1, in the nesting of the parameters.
        eigenvalue: the curvature along u, below zero.
        loss_before: the loss at the old place.
        loss_after: the loss where the parameters are now.
        evaluations: how often loss_and_grad was called.
        message: the same in words.
    """

    distance: float
    direction: Tree
    eigenvalue: float
    loss_before: float
    loss_after: float
    evaluations: int
    message: str


@dataclass(frozen=True, eq=False)
class StepReport:
    """What `step_report` found.

    Attributes:
        lr: ε of the step that was tried.
        loss: the loss where the parameters are.
        gradient_norm: ‖g‖.
        gradient_curvature: gᵀHg/gᵀg, the curvature along the gradient; NaN for a gradient of zero.
        predicted: the second order's change of the loss.
        measured: the loss's change in the step w − εg; inf or NaN if it is not finite there.
        largest_lr: the second order descends below this rate, and climbs above; inf if it descends at any.
        smallest: the smallest eigenvalue of the Hessian.
        largest: the largest one.
        errors: how far each may be off.
        condition_number: λ_max/λ_min; inf if λ_min is zero within its error, or 1e-6 λ_max; NaN if it is negative.
        stable_lr: 2(1 + μ)/λ_max, above which a quadratic of this curvature diverges; inf if λ_max is not positive.
        safe_lr: 1/λ_max; inf if λ_max is not positive.
        best_lr: 2/(λ_min + λ_max), the best constant rate without momentum; NaN if λ_min is not positive.
        best_factor: (κ − 1)/(κ + 1), by which the distance to the minimum then shrinks each step; NaN as best_lr.
        advice: what to do about it, a sentence each.
        message: all in words.
    """

    lr: float
    loss: float
    gradient_norm: float
    gradient_curvature: float
    predicted: float
    measured: float
    largest_lr: float
    smallest: float
    largest: float
    errors: tuple[float, float]
    condition_number: float
    stable_lr: float
    safe_lr: float
    best_lr: float
    best_factor: float
    advice: tuple[str, ...]
    message: str


@dataclass(frozen=True, eq=False)
class Sharpness:
    """What `sharpness` found.

    Attributes:
        largest: the largest eigenvalue of the Hessian.
        error: how far it may be off.
        distances: along the directions; at 1 each filter has moved by its own length.
        losses: the loss at each, of shape (directions, distances); not always finite.
        loss: the loss where the parameters are.
        message: the same in words.
    """

    largest: float
    error: float
    distances: Host
    losses: Host
    loss: float
    message: str


def critical_point(
    loss_and_grad: LossAndGrad,
    params: Tree,
    *,
    tol: float | None = None,
    curvature_tol: float = CURVATURE_TOL,
    hvp: Hvp | None = None,
    rng: np.random.Generator | int | None = None,
) -> CriticalPoint:
    r"""Tell a minimum, a maximum and a saddle apart, by the signs of the Hessian's extreme eigenvalues.

    .. math::
        \lVert g \rVert \le tol \cdot \max|\lambda| \cdot \max(1, \lVert w \rVert), \text{ then} \quad
        \text{minimum: } \lambda_{\min} > \tau, \quad
        \text{maximum: } \lambda_{\max} < -\tau, \quad
        \text{saddle: } \lambda_{\min} < -\tau \text{ and } \lambda_{\max} > \tau

    τ is ``curvature_tol`` of max|λ|, or twice the error of the eigenvalues (residual, and error of the products), if
    that is larger. No verdict rests on a gradient that only counts as zero: at the end of a Newton step along each
    eigenvector the curvature has to be the same within a quarter, or the critical point, if there is one, may be of
    another kind. So next to the origin x² + y³ is undecided.

    Args:
        loss_and_grad: a function of ``params`` that gives (loss, gradients in the nesting of params); always the same
            for the same parameters.
        params: array, or any nesting of dict, list and tuple of arrays (NumPy or CuPy); restored bit for bit.
        tol: tol ≥ 0, how close a critical point has to be, relative to ‖w‖ and along the steepest direction. 1e-6
            unless given, or 16 u if that is larger, as rounding leaves such a gradient: u is that of the coarsest of
            parameters, gradients and loss.
        curvature_tol: in [0, 1), below which share of max|λ| an eigenvalue counts as zero.
        hvp: ``hvp(params, v)`` gives Hv in the nesting of params; differences of gradients unless given.
        rng: a NumPy Generator or a seed for Lanczos' start; the same start each time unless given.

    Returns:
        A `CriticalPoint`. A minimum or a maximum of more than 32 parameters is as certain as that Lanczos from a random
        start found the ends of the spectrum; a saddle is so by its two directions, whatever else there may be.

    Raises:
        ModuleNotFoundError: scipy is not installed.
        TypeError: a parameter that is no writable float array, or an array of another library than its parameter.
        ValueError: an argument out of range, gradients or products of another nesting or shape, or not finite.

    Source: second-order conditions: Nocedal and Wright, "Numerical Optimization", 2006, theorems 2.3 and 2.4; the
    Newton step: Kantorovich's theorem, Ortega, "The Newton-Kantorovich Theorem", 1968.

    >>> print(rv.diagnose.critical_point(lambda w: (w[0] ** 2 - w[1] ** 2, w * [2, -2]), np.zeros(2)).kind)
    saddle
    """
    if tol is not None:
        tol = number("tol", tol, "a finite number ≥ 0", lambda t: 0 <= t < math.inf)
    curvature_tol = number("curvature_tol", curvature_tol, "a number in [0, 1)", lambda t: 0 <= t < 1)
    with Objective(loss_and_grad, params) as objective:
        operator = Operator(objective, hvp)
        _, g = objective.finite(operator.x, "at w")
        found = extremes(operator, least_tol=_lanczos_tol(curvature_tol), rng=rng)
        smallest, largest, errors, tau = _ends(found, curvature_tol)
        norm, radius = length(g), max(abs(smallest), abs(largest))
        tol = max(1e-6, 16 * objective.roundoff) if tol is None else tol
        limit = tol * radius * max(1.0, length(operator.x))
        kind, message = _kind(found, tau, curvature_tol * max(radius, operator.secant))
        if norm > limit:
            kind = "not critical"
            message = f"‖g‖ = {norm:.3g}, more than {limit:.3g}; {found.message}"
        elif kind in ("minimum", "maximum", "saddle") and (changed := _varies(operator, found, g, tau)):
            kind, message = "undecided", changed
    message = f"{kind}: {message}{objective.precision.message}"
    return CriticalPoint(kind, norm, limit, smallest, largest, errors, tau, message)


def _lanczos_tol(curvature_tol: float) -> float:
    """Return a tolerance whose residuals do not decide about τ."""
    return curvature_tol / 8


def _ends(found: Eigenvalues, curvature_tol: float = CURVATURE_TOL) -> tuple[float, float, Bounds, float]:
    """Return the eigenvalues at the two ends, their errors, and τ."""
    smallest, largest = float(found.values[0]), float(found.values[-1])
    errors = float(found.errors[0]), float(found.errors[-1])
    return smallest, largest, errors, max(curvature_tol * max(abs(smallest), abs(largest)), 2 * max(errors))


def _kind(found: Eigenvalues, tau: float, negligible: float) -> tuple[Kind, str]:
    smallest, largest = found.values[0], found.values[-1]
    certain = "all were computed" if found.complete else "as far as Lanczos from a random start can see"
    if smallest < -tau and largest > tau:
        return "saddle", f"{found.message}, of either sign beyond ±{tau:.2g}"
    if smallest > tau:
        return "minimum", f"{found.message}, above {tau:.2g}; {certain}"
    if largest < -tau:
        return "maximum", f"{found.message}, below {-tau:.2g}; {certain}"
    # Errors that hide a sign are no statement about the loss.
    if tau > negligible and found.errors.max() > 0:
        return "undecided", f"{found.message}: below {tau:.2g} no sign can be told; pass params of float64, or hvp="
    return "flat", f"{found.message}: zero within ±{tau:.2g} at an end, where the second order does not decide"


def _varies(operator: Operator, found: Eigenvalues, g: Array, tau: float) -> str:
    """Say which curvature would be another one at the end of a Newton step along its eigenvector, if any.

    Kantorovich: a critical point near w is certain, with the Hessian's signs, if the Hessian changes by less than half
    of λ over the Newton step. At a degenerate one (y³, y⁴) it changes by half or more, from wherever one looks.
    """
    for value, error, tree in zip(found.values, found.errors, found.vectors, strict=True):
        u = operator.objective.vector(tree)
        if abs(value) <= tau:
            continue
        step = -float(g @ u) / value
        there = Operator(operator.objective, operator.own, operator.x + step * u)
        change = abs(float(u @ there(u)) - value)
        if change > max(abs(value) / 4, 2 * error):
            return (
                f"{found.message}; but {value:.3g} changes by {change:.2g} over a Newton step of {abs(step):.2g}: "
                "the critical point may be a degenerate one; go on until the gradient is smaller"
            )
    return ""


def escape_saddle(
    loss_and_grad: LossAndGrad,
    params: Tree,
    *,
    distance: float | None = None,
    hvp: Hvp | None = None,
    rng: np.random.Generator | int | None = None,
) -> Escape:
    r"""Leave a saddle along the direction of the most negative curvature, until the loss is lower; changes ``params``.

    .. math:: w \leftarrow w + \alpha u, \qquad H u = \lambda_{\min} u, \quad g^T u \le 0, \quad
        L(w + \alpha u) - L(w) \le \tfrac1{10} \big(\alpha\, g^T u + \tfrac12 \alpha^2 \lambda_{\min}\big)

    α starts at ``distance`` and is halved until the loss has fallen by a tenth of what the second order says. Gradient
    descent cannot do this: at a saddle the gradient is zero.

    Args:
        loss_and_grad: a function of ``params`` that gives (loss, gradients in the nesting of params).
        params: array, or any nesting of dict, list and tuple of arrays (NumPy or CuPy); moved in place.
        distance: the first α > 0, over all parameters together; a tenth of max(1, ‖w‖) unless given.
        hvp: ``hvp(params, v)`` gives Hv in the nesting of params; differences of gradients unless given.
        rng: a NumPy Generator or a seed for Lanczos' start; the same start each time unless given.

    Returns:
        An `Escape`: what was done.

    Raises:
        ModuleNotFoundError: scipy is not installed.
        TypeError: a parameter that is no writable float array, or an array of another library than its parameter.
        ValueError: no negative curvature beyond errors, an argument out of range, gradients or products of another
            nesting or shape, or not finite; the parameters are as before.
        RuntimeError: the loss falls at no α down to rounding; the parameters are as before.

    Source: Nocedal and Wright, "Numerical Optimization", 2006, section 3.3 (directions of negative curvature).

    >>> w = np.zeros(2)
    >>> done = rv.diagnose.escape_saddle(lambda w: (w[0] ** 2 - w[1] ** 2, w * [2, -2]), w, distance=0.5)
    >>> abs(w).round(3), done.loss_before, round(done.loss_after, 3)
    (array([0. , 0.5]), 0.0, -0.25)
    """
    if distance is not None:
        distance = number("distance", distance, "a finite number > 0", lambda d: 0 < d < math.inf)
    with Objective(loss_and_grad, params) as objective:
        operator = Operator(objective, hvp)
        before, g = objective.finite(operator.x, "at w")
        found = extremes(operator, least_tol=_lanczos_tol(CURVATURE_TOL), rng=rng)
        smallest, _, _, tau = _ends(found)
        if smallest >= -tau:
            raise ValueError(
                f"params: expected a place of negative curvature, got {found.message}; "
                f"none is below {-tau:.2g}: this is no saddle, see critical_point"
            )
        u = objective.vector(found.vectors[0])
        slope = float(g @ u)
        if slope > 0:
            u, slope = -u, -slope
        # Below this the parameters themselves do not change any more.
        size = max(1.0, length(operator.x))
        alpha, least = 0.1 * size if distance is None else distance, objective.roundoff * size
        after = math.inf
        while alpha > least:
            after, _ = objective.evaluate(operator.x + alpha * u)
            if after < before and after - before <= 0.1 * (alpha * slope + 0.5 * alpha**2 * smallest):
                break
            alpha /= 2
        else:
            raise RuntimeError(
                f"the loss falls nowhere along the curvature {smallest:.3g}, down to a distance of {alpha:.2g}; "
                "is the gradient that of the loss? rv.check_gradient tells"
            )
        place = objective.point()
    objective.move(place)
    return Escape(
        alpha,
        objective.tree(u),
        smallest,
        before,
        after,
        objective.evaluations,
        f"moved by {alpha:.3g} along the curvature {smallest:.3g}: the loss fell from {before:.6g} to {after:.6g}"
        + objective.precision.message,
    )


def step_report(
    loss_and_grad: LossAndGrad,
    params: Tree,
    *,
    lr: float,
    momentum: float = 0.0,
    hvp: Hvp | None = None,
    rng: np.random.Generator | int | None = None,
) -> StepReport:
    r"""Try a step of gradient descent, compare it with what the second order says, and name the rates to use.

    .. math::
        L(w - \varepsilon g) - L(w) &\approx -\varepsilon g^T g + \tfrac12 \varepsilon^2 g^T H g,
            \qquad \text{below zero for } \varepsilon < 2 g^T g / g^T H g \\
        \text{stable: } \gamma &< \frac{2 (1 + \mu)}{\lambda_{\max}}, \quad
        \text{best: } \gamma = \frac{2}{\lambda_{\min} + \lambda_{\max}} \text{ with factor }
        \frac{\kappa - 1}{\kappa + 1}, \quad \text{safe: } \gamma = \frac{1}{\lambda_{\max}}

    A rate that is small enough always descends, however large κ is. At 2/λ_max a quadratic oscillates for ever along
    the steepest direction, above it diverges. These are the rates of this place: curvature changes on the way.

    Args:
        loss_and_grad: a function of ``params`` that gives (loss, gradients in the nesting of params).
        params: array, or any nesting of dict, list and tuple of arrays (NumPy or CuPy); restored bit for bit.
        lr: ε > 0, the rate to try.
        momentum: μ in [0, 1) of the accumulating form, for ``stable_lr``. The step that is tried is a first one, which
            momentum does not change.
        hvp: ``hvp(params, v)`` gives Hv in the nesting of params; differences of gradients unless given.
        rng: a NumPy Generator or a seed for Lanczos' start; the same start each time unless given.

    Returns:
        A `StepReport`.

    Raises:
        ModuleNotFoundError: scipy is not installed.
        TypeError: a parameter that is no writable float array, or an array of another library than its parameter.
        ValueError: an argument out of range, gradients or products of another nesting or shape, or not finite.

    Source: Goodfellow, Bengio and Courville, "Deep Learning", 2016, (4.9) and (4.10); the rates: Polyak, "Introduction
    to Optimization", 1987, section 1.4, theorem 3; with momentum: the same, section 3.2.

    >>> c = np.array([1.0, 10.0])
    >>> report = rv.diagnose.step_report(lambda w: (0.5 * w @ (c * w), c * w), np.ones(2), lr=0.1)
    >>> round(report.stable_lr, 6), round(report.safe_lr, 6), round(report.condition_number, 6)
    (0.2, 0.1, 10.0)
    >>> round(report.predicted, 6), round(report.measured, 6)
    (-5.095, -5.095)
    """
    lr = number("lr", lr, "a finite number > 0", lambda x: 0 < x < math.inf)
    momentum = number("momentum", momentum, "a number in [0, 1)", lambda x: 0 <= x < 1)
    with Objective(loss_and_grad, params) as objective:
        operator = Operator(objective, hvp)
        loss, g = objective.finite(operator.x, "at w")
        found = extremes(operator, least_tol=_lanczos_tol(CURVATURE_TOL), rng=rng)
        smallest, largest, errors, tau = _ends(found)
        norm = length(g)
        along, doubt = math.nan, 0.0
        if norm > 0:
            unit = g / norm
            along, doubt = float(unit @ operator(unit)), operator.error(unit)
        measured = objective.evaluate(operator.x - lr * g)[0] - loss
    # By the step's length: squares of the norm and of the rate may be no numbers where their product is one.
    moved = lr * norm
    predicted = -moved * norm + 0.5 * moved * moved * along if norm > 0 else 0.0
    convex, curved = smallest > tau, largest > tau
    kappa = largest / smallest if convex else math.nan if smallest < -tau else math.inf
    report = StepReport(
        lr=lr,
        loss=loss,
        gradient_norm=norm,
        gradient_curvature=along,
        predicted=predicted,
        measured=measured,
        largest_lr=2 / along if along > doubt else math.inf,
        smallest=smallest,
        largest=largest,
        errors=errors,
        condition_number=kappa,
        stable_lr=2 * (1 + momentum) / largest if curved else math.inf,
        safe_lr=1 / largest if curved else math.inf,
        best_lr=2 / (smallest + largest) if convex else math.nan,
        best_factor=(kappa - 1) / (kappa + 1) if convex else math.nan,
        advice=(),
        message="",
    )
    advice = _advice(report, momentum, tau, 64 * objective.roundoff * max(abs(loss), abs(loss + measured)))
    message = (
        f"a step of {lr:g} changes the loss by {measured:.4g}, the second order says {predicted:.4g}; {found.message}"
        + objective.precision.message
    )
    return replace(report, advice=advice, message="\n- ".join([message, *advice]))


def _advice(report: StepReport, momentum: float, tau: float, rounding: float) -> tuple[str, ...]:
    """Say what the lectures say one should do."""
    r = report
    if r.gradient_norm == 0:
        return ("the gradient is zero, no rate moves anything: critical_point tells a minimum from a saddle",)
    said = []
    if not math.isfinite(r.measured):
        said.append(f"the loss is {r.measured} after the step: lower the rate, clip the gradient, or warm up")
    elif r.measured > rounding:
        if r.lr > r.largest_lr:
            said.append(f"the loss climbs: the second order descends for rates below {r.largest_lr:.3g}")
        else:
            said.append("the loss climbs where the second order descends: lower the rate, curvature grows on the way")
    elif abs(r.measured - r.predicted) > 0.25 * abs(r.predicted) + rounding:
        said.append("the second order does not hold over a step of this length: its rates are those of shorter steps")
    with_momentum = f" with momentum {momentum:g}" if momentum else ""
    if r.lr > r.stable_lr * (1 + 1e-6):
        said.append(
            f"the rate is above {r.stable_lr:.3g}, where a quadratic of this curvature diverges{with_momentum}: "
            f"{r.safe_lr:.3g} is safe; or warm up until the curvature has fallen"
        )
    elif r.lr >= r.stable_lr * (1 - 1e-6):
        said.append(f"the rate is at {r.stable_lr:.3g}, where a quadratic of this curvature oscillates for ever")
    elif r.lr < 0.1 * r.safe_lr < math.inf:
        said.append(f"the rate is small: up to {r.safe_lr:.3g} is safe")
    if r.smallest < -tau:
        said.append(
            f"the curvature {r.smallest:.3g} is negative: near a saddle gradients vanish; momentum carries on, "
            "escape_saddle leaves along it"
        )
    elif r.condition_number > ILL_CONDITIONED:
        slow = "flat directions hardly move at any rate"
        if r.smallest > tau:
            slow = f"at the best constant rate, {r.best_lr:.3g}, a step takes {1 - r.best_factor:.2g} off the distance"
        said.append(
            f"ill-conditioned, κ = {r.condition_number:.3g}: {slow}; take momentum, a rate per parameter (RMSprop, "
            "Adam), centred and scaled inputs, or a second-order method"
        )
    return tuple(said or ["the step does what the second order says, at a rate that is neither too large nor small"])


def sharpness(
    loss_and_grad: LossAndGrad,
    params: Tree,
    *,
    distances: Sequence[float] = DISTANCES,
    directions: int = 3,
    filter_axis: int = -1,
    hvp: Hvp | None = None,
    rng: np.random.Generator | int | None = None,
) -> Sharpness:
    r"""Tell how sharp a minimum is: the largest eigenvalue, and the loss along random filter-normalised directions.

    .. math:: L(w + t\, d), \qquad d_{f} \leftarrow \frac{d_{f}}{\lVert d_{f} \rVert} \lVert w_{f} \rVert
        \text{ for each filter } f

    The eigenvalue changes when a ReLU network's layers are rescaled, which does not change what the network computes;
    the losses do not. A filter is what feeds one unit: a slice of an array of two or more dimensions at one index of
    ``filter_axis``. An array of one dimension or none is one filter. A filter of zeros stays where it is.

    Args:
        loss_and_grad: a function of ``params`` that gives (loss, gradients in the nesting of params).
        params: array, or any nesting of dict, list and tuple of arrays (NumPy or CuPy); restored bit for bit.
        distances: t, finite; at 1 each filter moves by its own length.
        directions: how many, at least 1.
        filter_axis: −1, the last, as of the (n_in, n_out) weights of `ravine.nn`; 0 for weights of (n_out, n_in, …).
        hvp: ``hvp(params, v)`` gives Hv in the nesting of params; differences of gradients unless given.
        rng: a NumPy Generator or a seed for the directions; the same ones each time unless given.

    Returns:
        A `Sharpness`.

    Raises:
        ModuleNotFoundError: scipy is not installed.
        TypeError: a parameter that is no writable float array, or an array of another library than its parameter.
        ValueError: an argument out of range, gradients or products of another nesting or shape, or not finite at w.

    Source: Li, Xu, Taylor, Studer and Goldstein, "Visualizing the Loss Landscape of Neural Nets", 2018, section 4.

    >>> c = np.array([1.0, 4.0])
    >>> found = rv.diagnose.sharpness(lambda w: (0.5 * w @ (c * w), c * w), np.zeros(2), distances=[0, 1])
    >>> round(found.largest, 6), found.losses.shape
    (4.0, (3, 2))
    """
    directions = integer("directions", directions, 1)
    if filter_axis not in (-1, 0):
        raise ValueError(f"filter_axis: expected -1 (the last) or 0 (the first), got {filter_axis!r}")
    t = np.array(numbers("distances", distances))
    if t.size == 0 or not np.isfinite(t).all():
        raise ValueError(f"distances: expected at least one finite number, got {t.tolist()}")
    rng = generator(rng)
    with Objective(loss_and_grad, params) as objective:
        operator = Operator(objective, hvp)
        loss, _ = objective.finite(operator.x, "at w")
        found = extremes(operator)
        losses = np.empty((directions, t.size))
        for row in losses:
            d = _filter_normalized(objective, operator.x, objective.random(rng), filter_axis)
            row[:] = [objective.evaluate(operator.x + distance * d)[0] for distance in t]
    _, largest, errors, _ = _ends(found)
    furthest = losses[:, abs(t).argmax()]
    return Sharpness(
        largest,
        errors[1],
        t,
        losses,
        loss,
        f"largest eigenvalue {largest:.4g} (±{errors[1]:.2g}); at {t[abs(t).argmax()]:g} of the filters' lengths the "
        f"loss goes from {loss:.4g} to {furthest.mean():.4g}, the mean over {directions} directions"
        + objective.precision.message,
    )


def _filter_normalized(objective: Objective, x: Array, direction: Array, axis: int) -> Array:
    xp, tree = objective.xp, objective.tree(direction)
    # x, not the parameters: they are wherever the last loss was taken.
    for w, d in zip(leaves_of(objective.tree(x)).values(), leaves_of(tree).values(), strict=True):
        axes = None if w.ndim < 2 else tuple(range(w.ndim - 1)) if axis == -1 else tuple(range(1, w.ndim))
        long = _unit_norms(xp, d, axes)
        d *= _unit_norms(xp, w, axes) / xp.where(long > 0, long, 1.0)
    return objective.vector(tree)


def _unit_norms(xp: Any, x: Array, axes: tuple[int, ...] | None) -> Array:
    """Return the norms of units, scaled by powers of two: squares of small and large ones leave float64's range."""
    if not x.size:
        return xp.zeros_like(x)
    size = abs(x).max(axis=axes, keepdims=True)
    exponent = xp.where((size > 0) & xp.isfinite(size), xp.frexp(size)[1] - 1, 0)
    power = xp.ldexp(1.0, exponent)
    return power * xp.sqrt(xp.square(x / power).sum(axis=axes, keepdims=True))
