"""The Hessian H of a loss from its gradients alone: products Hv, extreme eigenvalues, the whole spectrum, the trace.

No Hessian is ever formed, but for up to 32 parameters. The parameters are changed in place meanwhile and restored bit
for bit, also if an error is raised. Vectors are float64 and in the nesting of the parameters.

The loss must be the same for the same parameters: fix its random numbers, and take one batch, or all data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from ravine import init
from ravine.norms import length
from ravine.objective import (
    Array,
    LossAndGrad,
    Objective,
    Tree,
    check_function,
    holds_float32,
    integer,
    number,
    rounding_unit,
    scipy,
)
from ravine.trees import to_host

__all__ = [
    "Eigenvalues",
    "SpectrumDensity",
    "TraceEstimate",
    "extreme_eigenvalues",
    "hvp",
    "spectrum_density",
    "trace",
]

Hvp: TypeAlias = Callable[[Tree, Tree], Tree]
Host: TypeAlias = np.ndarray[Any, Any]

#: Up to here the matrix of all products costs little more than ARPACK's first twenty, and misses no eigenvalue.
DENSE = 32
_FLOAT32 = 2.0**-24
#: Products for an estimate of max|λ|, which needs no accuracy.
_RADIUS_STEPS = 16
_FALLBACK_STEPS = 64


@dataclass(frozen=True, eq=False)
class Eigenvalues:
    """What `extreme_eigenvalues` found.

    Attributes:
        values: rising; the k smallest and the k largest.
        vectors: an eigenvector of length 1 for each, in the nesting of the parameters.
        residuals: ‖Hv − λv‖ for each.
        errors: residual and error of the product together: some eigenvalue of H is about as close as this to each.
        complete: whether these are all eigenvalues of H, so that none at the ends can have been missed.
        converged: whether ARPACK reached the tolerance; if not, the residuals are large and the ends lie further out.
        evaluations: how often loss_and_grad was called.
        message: the same in words.
    """

    values: Host
    vectors: tuple[Tree, ...]
    residuals: Host
    errors: Host
    complete: bool
    converged: bool
    evaluations: int
    message: str


@dataclass(frozen=True, eq=False)
class SpectrumDensity:
    """What `spectrum_density` found: how the eigenvalues are distributed.

    Attributes:
        grid: eigenvalues, rising in equal steps.
        density: the density at each, which integrates to 1.
        nodes: the quadrature's nodes, rising; the density is a sum of Gaussians around them.
        weights: the nodes' weights, which sum to 1: Σ weight·f(node) estimates the mean of f over the eigenvalues.
        sigma: the Gaussians' standard deviation.
    """

    grid: Host
    density: Host
    nodes: Host
    weights: Host
    sigma: float


@dataclass(frozen=True, eq=False)
class TraceEstimate:
    """What `trace` found.

    Attributes:
        value: the estimate of the sum of all eigenvalues.
        standard_error: of that estimate, from the spread of the samples.
        samples: vᵀHv for each random vector.
    """

    value: float
    standard_error: float
    samples: Host


def hvp(loss_and_grad: LossAndGrad, params: Tree, v: Tree) -> Tree:
    r"""Multiply the Hessian by a vector, by a central difference of gradients.

    .. math:: H v \approx \frac{g(w + h v) - g(w - h v)}{2 h}, \qquad
        h = \frac{u^{1/3}}{4 \lVert v / \max(1, |w|) \rVert}

    u is the unit roundoff of the coarsest dtype of parameters, gradients and loss: 1.1e-16 for float64, 6e-8 for
    float32, also where float64 parameters get float32 gradients, as JAX gives them. float64 gradients whose changes are
    all float32's numbers were computed in float32, and count as such. Where g is smooth the error is about u^(2/3) of
    ‖H‖ and of max(1, ‖w‖): u^(2/3) is 2e-11 for float64, 2e-5 for float32, 6e-3 for float16. Moved parameters are
    rounded to that dtype: the difference is the product with the step as it was stored, and what rounding left out of v
    is made up by another.

    Args:
        loss_and_grad: a function of ``params`` that gives (loss, gradients in the nesting of params).
        params: array, or any nesting of dict, list and tuple of arrays (NumPy or CuPy); restored bit for bit.
        v: finite arrays in the nesting and the shapes of params, of any length.

    Returns:
        New float64 arrays in the nesting of params.

    Raises:
        TypeError: a parameter that is no writable float array, or an array of another library than its parameter.
        ValueError: v or gradients of another nesting or shape, or numbers that are not finite.

    Source: Nocedal and Wright, "Numerical Optimization", 2006, sections 7.1 (the product) and 8.1 (its step).

    >>> w = np.array([3.0, 1.0])
    >>> hv = rv.hessian.hvp(lambda w: (w[0] ** 2 * w[1], np.array([2 * w[0] * w[1], w[0] ** 2])), w, np.array([1, 0]))
    >>> hv.round(6)
    array([2., 6.])
    """
    with Objective(loss_and_grad, params) as objective:
        return objective.tree(Operator(objective)(objective.vector(v, "v")))


def extreme_eigenvalues(
    loss_and_grad: LossAndGrad,
    params: Tree,
    *,
    k: int = 1,
    tol: float | None = None,
    max_iterations: int | None = None,
    hvp: Hvp | None = None,
    rng: np.random.Generator | int | None = None,
) -> Eigenvalues:
    r"""Find the k smallest and the k largest eigenvalues of the Hessian, with their vectors.

    .. math:: H v_i = \lambda_i v_i, \qquad
        \min_j |\lambda_j(H) - \lambda_i| \le \lVert H v_i - \lambda_i v_i \rVert

    By ARPACK (scipy) on products with H; up to 32 parameters, or if 2k covers them all, by all products and a dense
    solver. Residuals come from new products with the final vectors. ARPACK starts from one random vector: an end that
    is orthogonal to it can be missed in principle, and a residual does not show that.

    Args:
        loss_and_grad: a function of ``params`` that gives (loss, gradients in the nesting of params).
        params: array, or any nesting of dict, list and tuple of arrays (NumPy or CuPy); restored bit for bit.
        k: how many at each end, at least 1; fewer come back if there are fewer than 2k parameters.
        tol: where ARPACK stops, its residual relative to max|λ|; 1e-6 or u^(2/3) unless given, whichever is larger.
        max_iterations: ARPACK's restarts at each end; its own limit, 10 per parameter, unless given.
        hvp: ``hvp(params, v)`` gives Hv in the nesting of params; differences of gradients unless given.
        rng: a NumPy Generator or a seed for the start; the same start each time unless given.

    Returns:
        An `Eigenvalues`. If ARPACK did not converge: the best of a short Lanczos run, with ``converged`` False and
        residuals that say how good they are.

    Raises:
        ModuleNotFoundError: scipy is not installed.
        TypeError: a parameter that is no writable float array, or an array of another library than its parameter.
        ValueError: an argument out of range, gradients or products of another nesting or shape, or not finite.

    Source: Lehoucq, Sorensen and Yang, "ARPACK Users' Guide", 1998; the bound: Parlett, "The Symmetric Eigenvalue
    Problem", 1998, theorem 4.5.1.

    >>> c = np.array([3.0, -1.0, 0.5])
    >>> found = rv.hessian.extreme_eigenvalues(lambda w: (0.5 * w @ (c * w), c * w), np.zeros(3))
    >>> found.values.round(6)
    array([-1.,  3.])
    """
    integer("k", k, 1)
    if tol is not None:
        tol = number("tol", tol, "a number in (0, 1)", lambda t: 0 < t < 1)
    if max_iterations is not None:
        integer("max_iterations", max_iterations, 1)
    with Objective(loss_and_grad, params) as objective:
        found = extremes(Operator(objective, hvp), k, tol, max_iterations, rng)
        return replace(found, message=found.message + objective.precision.message)


def spectrum_density(
    loss_and_grad: LossAndGrad,
    params: Tree,
    *,
    steps: int = 64,
    probes: int = 8,
    points: int = 1024,
    sigma: float | None = None,
    hvp: Hvp | None = None,
    rng: np.random.Generator | int | None = None,
) -> SpectrumDensity:
    r"""Estimate the density of the Hessian's eigenvalues, by stochastic Lanczos quadrature.

    .. math:: \phi(t) = \frac1n \sum_i \delta(t - \lambda_i) \approx
        \frac1P \sum_{p} \sum_j \tau_{pj}^2\, \mathcal N(t;\, \theta_{pj}, \sigma^2)

    θ and τ are eigenvalues, and first components of eigenvectors, of the tridiagonal matrix that Lanczos makes from
    random vector p. The vectors are kept orthogonal to all before, which takes ``steps`` vectors of memory. Each vector
    costs ``steps`` products.

    Args:
        loss_and_grad: a function of ``params`` that gives (loss, gradients in the nesting of params).
        params: array, or any nesting of dict, list and tuple of arrays (NumPy or CuPy); restored bit for bit.
        steps: of Lanczos, at least 1; no more are done than there are parameters.
        probes: P ≥ 1, random vectors of ±1.
        points: of the grid, at least 2. It reaches six σ beyond the nodes; its step should be below σ.
        sigma: σ > 0; a hundredth of max|λ| unless given.
        hvp: ``hvp(params, v)`` gives Hv in the nesting of params; differences of gradients unless given.
        rng: a NumPy Generator or a seed for the vectors; the same ones each time unless given.

    Returns:
        A `SpectrumDensity`; NumPy arrays.

    Raises:
        ModuleNotFoundError: scipy is not installed.
        TypeError: a parameter that is no writable float array, or an array of another library than its parameter.
        ValueError: an argument out of range, gradients or products of another nesting or shape, or not finite.

    Source: Lin, Saad and Yang, "Approximating Spectral Densities of Large Matrices", 2016, section 3.2.1; for networks:
    Ghorbani, Krishnan and Xiao, "An Investigation into Neural Net Optimization via Hessian Eigenvalue Density", 2019.

    >>> c = np.array([1.0, 1.0, 1.0, 5.0])
    >>> found = rv.hessian.spectrum_density(lambda w: (0.5 * w @ (c * w), c * w), np.zeros(4), probes=1)
    >>> found.nodes.round(6), found.weights.round(6)
    (array([1., 5.]), array([0.75, 0.25]))
    """
    for name, count, least in (("steps", steps, 1), ("probes", probes, 1), ("points", points, 2)):
        integer(name, count, least)
    if sigma is not None:
        sigma = number("sigma", sigma, "a finite number > 0", lambda s: 0 < s < math.inf)
    eigh_tridiagonal = scipy("linalg").eigh_tridiagonal
    rng = generator(rng)
    nodes, weights = [], []
    with Objective(loss_and_grad, params) as objective:
        operator = Operator(objective, hvp)
        for _ in range(probes):
            diagonal, beside, _ = lanczos(operator, _signs(objective, rng), steps)
            theta, vectors = eigh_tridiagonal(diagonal, beside)
            nodes.append(theta)
            weights.append(vectors[0] ** 2 / probes)
    all_nodes, all_weights = np.concatenate(nodes), np.concatenate(weights)
    order = all_nodes.argsort()
    all_nodes, all_weights = all_nodes[order], all_weights[order] / all_weights.sum()
    if sigma is None:
        sigma = 0.01 * (float(abs(all_nodes).max()) or 1.0)
    grid = np.linspace(all_nodes[0] - 6 * sigma, all_nodes[-1] + 6 * sigma, points)
    density = np.zeros(points)
    for node, weight in zip(all_nodes, all_weights, strict=True):
        density += weight * np.exp(-0.5 * ((grid - node) / sigma) ** 2)
    density /= sigma * math.sqrt(2 * math.pi)
    return SpectrumDensity(grid, density, all_nodes, all_weights, sigma)


def trace(
    loss_and_grad: LossAndGrad,
    params: Tree,
    *,
    probes: int = 32,
    hvp: Hvp | None = None,
    rng: np.random.Generator | int | None = None,
) -> TraceEstimate:
    r"""Estimate the Hessian's trace, the sum of its eigenvalues, from products with random signs.

    .. math:: \operatorname{tr} H = \mathbb E[v^T H v], \quad v_i = \pm 1, \qquad
        \operatorname{Var}[v^T H v] = 2 \sum_{i \ne j} H_{ij}^2

    Args:
        loss_and_grad: a function of ``params`` that gives (loss, gradients in the nesting of params).
        params: array, or any nesting of dict, list and tuple of arrays (NumPy or CuPy); restored bit for bit.
        probes: how many random vectors, at least 2. The standard error falls as 1/√probes.
        hvp: ``hvp(params, v)`` gives Hv in the nesting of params; differences of gradients unless given.
        rng: a NumPy Generator or a seed for the vectors; the same ones each time unless given.

    Returns:
        A `TraceEstimate`. The standard error covers the choice of vectors, not the error of the products.

    Raises:
        TypeError: a parameter that is no writable float array, or an array of another library than its parameter.
        ValueError: an argument out of range, gradients or products of another nesting or shape, or not finite.

    Source: Hutchinson, "A Stochastic Estimator of the Trace of the Influence Matrix for Laplacian Smoothing Splines",
    1990, proposition 1.

    >>> c = np.array([3.0, -1.0, 0.5])  # a diagonal Hessian: every sample is the trace itself
    >>> found = rv.hessian.trace(lambda w: (0.5 * w @ (c * w), c * w), np.zeros(3))
    >>> round(found.value, 6), round(found.standard_error, 6)
    (2.5, 0.0)
    """
    integer("probes", probes, 2)
    rng = generator(rng)
    with Objective(loss_and_grad, params) as objective:
        operator = Operator(objective, hvp)
        vectors = (_signs(objective, rng) for _ in range(probes))
        samples = np.array([float(v @ operator(v)) for v in vectors])
    return TraceEstimate(float(samples.mean()), float(samples.std(ddof=1)) / math.sqrt(probes), samples)


class Operator:
    """The Hessian at one place, as a function of a vector, for this module, `ravine.diagnose` and `ravine.minimize`.

    ``gradient(x, where)`` gives the gradient at x; the objective's, which has to be finite, unless given.
    """

    def __init__(
        self,
        objective: Objective,
        own: Hvp | None = None,
        x: Array | None = None,
        gradient: Callable[[Array, str], Array] | None = None,
    ) -> None:
        if own is not None:
            check_function("hvp", own)
        self.objective, self.own = objective, own
        self._gradient = gradient or (lambda x, where: objective.finite(x, where)[1])
        self.x = objective.point() if x is None else x
        self._scale = objective.xp.maximum(abs(self.x), 1.0)
        self._unit = rounding_unit(objective.leaves)
        #: The largest ‖g(w ± hv)‖/(h‖v‖) seen: a curvature can be read off down to a small share of it.
        self.secant = 0.0

    def __call__(self, v: Array) -> Array:
        """Return Hv."""
        size = self._size(v)
        return 0 * v if size == 0 else size * self._product(v / size, 1.0)[0]

    def error(self, v: Array) -> float:
        """Estimate ‖computed Hv − Hv‖.

        A difference at twice the step has four times the error of curvature that varies, and other rounding errors.
        What g itself was rounded by comes on top, since both may be off alike. The user's product has to be linear.
        """
        size = self._size(v)
        if size == 0:
            return 0.0
        v = v / size
        product, rounding = self._product(v, 1.0)
        other, _ = self._product(v, 2.0)
        return size * (length(other - product) + rounding)

    def _size(self, v: Array) -> float:
        """Return max|v|, by which vectors are divided: squares of small and large ones leave float64's range."""
        size = float(abs(v).max())
        if not math.isfinite(size):
            raise ValueError(f"v: expected finite numbers, got {size}")
        return size

    def _product(self, v: Array, factor: float) -> tuple[Array, float]:
        """Return Hv, and how far the roundoff of g alone can move it."""
        if self.own is not None:
            self.objective.move(self.x)
            tree = self.own(self.objective.params, self.objective.tree(factor * v))
            product = self.objective.vector(tree, "hvp: products") / factor
            if not bool(self.objective.xp.isfinite(product).all()):
                raise ValueError("hvp: expected finite products, got others")
            self.objective.precision.see("products", tree)
            return product, self.objective.roundoff * length(product)
        precision = self.objective.precision
        unit, before = precision.unit, self.secant
        product, rounding, told = self._differences(v, factor, unit)
        # The gradients have shown to be coarser than was known: the step was too short for them.
        while precision.unit > unit:
            unit, self.secant = precision.unit, before
            product, rounding, told = self._differences(v, factor, unit)
        if unit < _FLOAT32 and told:
            # float64 gradients that hold float32's numbers, of which a longer step has the last word.
            secant, self.secant = self.secant, before
            product_of_float32, rounding_of_float32, told = self._differences(v, factor, _FLOAT32)
            if told:
                precision.take("gradients", _FLOAT32)
                return product_of_float32, rounding_of_float32
            self.secant = secant
        return product, rounding

    def _differences(self, v: Array, factor: float, unit: float) -> tuple[Array, float, bool]:
        """Return Hv, the roundoff of g in it, and whether what changed in g are numbers of float32.

        What rounding to a coarser dtype left out of the step is a vector like any other. Mostly it is negligible; where
        small moves of large parameters were lost, its own step is longer.
        """
        left, total, rounding, short = v, 0 * v, 0.0, True
        for _ in range(3):
            product, moved, noise, told = self._difference(left, factor, unit)
            total, rounding, left, short = total + product, rounding + noise, left - moved, short and told
            # Infinite: the parameters' dtype has overflown.
            if not math.sqrt(unit) * length(v) < length(left) < math.inf:
                break
        return total, rounding, short

    def _difference(self, v: Array, factor: float, unit: float) -> tuple[Array, Array, float, bool]:
        """Return the product with s, s ≈ v being how the parameters moved, per h; s; and what `_differences` returns.

        The error of rounding is about u/(h‖v‖), that of curvature that varies h²‖v‖²: both are of order u^(2/3) if the
        step is of order u^(1/3). Elements count relative to their size, or to 1 if they are smaller. All of them
        together move as far as one alone would: along the steepest eigenvector of a network curvature changes over
        distances far below 1, and far below ‖w‖. The quarter is measured, on networks of digits with 12 060 and 190 410
        parameters: there the two errors are about equal, in float32; on the smaller one in float16, too.
        """
        objective = self.objective
        h = factor * unit ** (1 / 3) / (4 * length(v / self._scale))
        norm = length(v)
        places, gradients = [], []
        for sign, where in ((1, "w + h·v"), (-1, "w - h·v")):
            # A function that computes in float32 rounds finer parameters first: they go where it would take them.
            place = self.x + sign * h * v
            place = _rounded(place, unit) if unit > self._unit else place
            gradients.append(self._gradient(place, f"at {where}, h·|v| = {h * norm:.2g}"))
            places.append(objective.point())
        step = (places[0] - places[1]) / 2
        secant = max(length(g) for g in gradients) / h
        self.secant = max(self.secant, secant / norm)
        told = False
        if self._unit < _FLOAT32:
            changed = gradients[0] != gradients[1]
            told = holds_float32(objective.xp.concatenate([g[changed] for g in gradients]))
        return (gradients[0] - gradients[1]) / (2 * h), step / h, unit * secant, told


def _rounded(x: Array, unit: float) -> Array:
    dtype = {_FLOAT32: np.float32, 2.0**-11: np.float16}.get(unit)
    if dtype is None:
        return x
    with np.errstate(over="ignore"):
        return x.astype(dtype).astype(np.float64)


def extremes(
    operator: Operator,
    k: int = 1,
    tol: float | None = None,
    max_iterations: int | None = None,
    rng: np.random.Generator | int | None = None,
    least_tol: float = 1e-6,
) -> Eigenvalues:
    """Do what `extreme_eigenvalues` does, for an operator; tol is least_tol, or what products carry, unless given."""
    objective = operator.objective
    n, before = objective.size, objective.evaluations
    rng = generator(rng)
    converged, complete = True, 2 * k >= n or n <= DENSE
    if complete:
        vectors = _dense(operator)
        if n > 2 * k:
            vectors = [*vectors[:k], *vectors[-k:]]
    else:
        vectors, converged = _arpack(operator, k, tol, least_tol, max_iterations, rng)
    found = []
    for v in vectors:
        product = operator(v)
        value = float(v @ product)
        found.append((value, length(product - value * v), operator.error(v), v))
    found.sort(key=lambda pair: pair[0])
    tol = max(least_tol, objective.roundoff ** (2 / 3)) if tol is None else tol
    values, residuals, errors = (np.array([pair[i] for pair in found]) for i in range(3))
    # As far as the products allow is far enough, whatever ARPACK says.
    converged = converged or bool((residuals <= np.maximum(errors, tol * abs(values).max())).all())
    errors += residuals
    message = f"eigenvalues from {values[0]:.6g} (±{errors[0]:.2g}) to {values[-1]:.6g} (±{errors[-1]:.2g})"
    if not converged:
        message += "; ARPACK did not converge: pass a larger tol or max_iterations, or params of float64"
    return Eigenvalues(
        values,
        tuple(objective.tree(pair[3]) for pair in found),
        residuals,
        errors,
        complete,
        converged,
        objective.evaluations - before,
        message,
    )


def _dense(operator: Operator) -> list[Array]:
    """Return all eigenvectors, by rising eigenvalue."""
    objective = operator.objective
    columns = [to_host(operator(objective.put(unit))) for unit in np.eye(objective.size)]
    matrix = np.stack(columns)
    _, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return [objective.put(v.copy()) for v in vectors.T]


def _arpack(
    operator: Operator,
    k: int,
    tol: float | None,
    least_tol: float,
    max_iterations: int | None,
    rng: np.random.Generator,
) -> tuple[list[Array], bool]:
    """Return eigenvectors of the k smallest and the k largest eigenvalues, and whether ARPACK converged."""
    linalg, objective = scipy("sparse.linalg"), operator.objective
    start = rng.standard_normal(objective.size)
    diagonal, beside, _ = lanczos(operator, objective.put(start), _RADIUS_STEPS)
    radius = float(abs(_ritz(diagonal, beside)[0]).max())
    # Only now: how coarse the gradients are, the first products have shown.
    tol = max(least_tol, objective.roundoff ** (2 / 3)) if tol is None else tol
    vectors: list[Array] = []
    try:
        # scipy's, on the host, also for CuPy: one path, the same numbers, and moving a vector is little beside the two
        # gradients that a product takes. ARPACK's tolerance is relative to the eigenvalue that it looks for: the shift
        # makes it one to max|λ|, or an end near zero would never be found to the accuracy that products have.
        for which, shift in (("SA", -radius), ("LA", radius)):
            shifted = linalg.LinearOperator(
                (objective.size, objective.size),
                matvec=lambda x, shift=shift: to_host(operator(objective.put(x.copy()))) + shift * x,
                dtype=np.float64,
            )
            _, found = linalg.eigsh(shifted, k, which=which, v0=start, tol=tol, maxiter=max_iterations)
            vectors += [objective.put(v.copy()) for v in found.T]
    except linalg.ArpackError:  # no convergence, or nothing to converge to: products that are all zero, or all rounding
        diagonal, beside, basis = lanczos(operator, objective.put(start), _FALLBACK_STEPS)
        _, found = _ritz(diagonal, beside)
        ends = [*range(len(diagonal))[:k], *range(len(diagonal))[-k:]]
        combined = (objective.put(found[:, i].copy()) @ basis for i in dict.fromkeys(ends))
        return [v / length(v) for v in combined], False
    return vectors, True


def lanczos(operator: Operator, start: Array, steps: int) -> tuple[Host, Host, Array]:
    """Return T = QᵀHQ as its diagonal and the numbers beside it, and Q, a basis vector in each row."""
    objective = operator.objective
    steps = min(steps, objective.size)
    basis = objective.xp.zeros((steps, objective.size))
    basis[0] = start / length(start)
    diagonal: list[float] = []
    beside: list[float] = []
    scale = 0.0
    for j in range(steps):
        w = operator(basis[j])
        diagonal.append(float(w @ basis[j]))
        # Against all before, twice: in floating point, Lanczos' own three terms lose orthogonality, and eigenvalues
        # come back as copies of themselves.
        for _ in range(2):
            w = w - (basis[: j + 1] @ w) @ basis[: j + 1]
        beta = length(w)
        scale = max(scale, abs(diagonal[-1]), beta)
        # Nothing but dust is left: the start lies in a space that H maps to itself, where T is already exact.
        if j + 1 == steps or beta <= 1e-12 * scale:
            break
        beside.append(beta)
        basis[j + 1] = w / beta
    return np.array(diagonal), np.array(beside), basis[: len(diagonal)]


def _ritz(diagonal: Host, beside: Host) -> tuple[Host, Host]:
    values, vectors = scipy("linalg").eigh_tridiagonal(diagonal, beside)
    return values, vectors


def generator(rng: np.random.Generator | int | None) -> np.random.Generator:
    """Return rng, the Generator of that seed, or the one that is taken unless given.

    Not that of seed 0: many parameters were drawn from it, and the directions would be those parameters once more.

    Raises:
        TypeError: neither a Generator nor a seed.
        ValueError: a seed below 0.
    """
    made: np.random.Generator = init.generator(0x7261766E65 if rng is None else rng)
    return made


def _signs(objective: Objective, rng: np.random.Generator) -> Array:
    return objective.xp.where(objective.random(rng) < 0, -1.0, 1.0)
