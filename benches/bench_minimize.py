"""rv.minimize beside scipy.optimize.minimize: calls of the loss, and the gradient that is left.

python -m benches.bench_minimize --output benches/record/minimize.md

Both stop where no element of the gradient is above 1e-5 (scipy's Newton-CG, which has no such option, by a callback),
or after 1000 iterations. scipy's L-BFGS-B is given the memory of ours, 10 pairs, and no tolerance of the loss.
"""

import argparse
import platform
import warnings
from pathlib import Path

import numpy as np
import scipy
import scipy.optimize

import ravine as rv
from benches.more_garbow_hillstrom import PROBLEMS as STANDARD
from benches.more_garbow_hillstrom import squares

TOLERANCE = 1e-5
#: Where scipy's L-BFGS-B ends with a small gradient before it is at the minimum.
ELSEWHERE = "Powell badly scaled"
METHODS = {"lbfgs": "L-BFGS-B", "newton-cg": "Newton-CG"}


def rosenbrock(w):
    return scipy.optimize.rosen(w), scipy.optimize.rosen_der(w)


def beale(w):
    """Beale, "On an iterative method for finding a local minimum of a function of more than one variable", 1958."""
    x, y = w
    r = [c - x * (1 - y**k) for k, c in ((1, 1.5), (2, 2.25), (3, 2.625))]
    dx = sum(2 * r[k - 1] * (y**k - 1) for k in (1, 2, 3))
    return sum(a * a for a in r), np.array([dx, sum(2 * r[k - 1] * x * k * y ** (k - 1) for k in (1, 2, 3))])


def himmelblau(w):
    """Himmelblau, "Applied Nonlinear Programming", 1972: four minima of 0."""
    a, b = w[0] ** 2 + w[1] - 11, w[0] + w[1] ** 2 - 7
    return a * a + b * b, np.array([4 * w[0] * a + 2 * b, 2 * a + 4 * w[1] * b])


def quadratic(condition, n=50):
    """Half of wᵀHw, with eigenvalues from 1/condition to 1 in a random basis."""
    basis, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((n, n)))
    H = basis * np.geomspace(1 / condition, 1, n) @ basis.T
    return lambda w: (0.5 * w @ H @ w, H @ w)


def logarithm(w):
    """Σ(w − log w): not defined for w ≤ 0, minimum n at 1."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (w - np.log(w)).sum(), 1 - 1 / w


def saddle(w):
    """½x² + ¼y⁴ − ½y²: a saddle at 0, minima of −¼ at y = ±1."""
    return 0.5 * w[0] ** 2 + 0.25 * w[1] ** 4 - 0.5 * w[1] ** 2, np.array([w[0], w[1] ** 3 - w[1]])


def logistic_regression(l2=1e-3):
    """Breast cancer, Wisconsin (569 × 30, standardised): mean cross-entropy + ½·l2·‖w‖², the last element the bias."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    x = np.column_stack([(x - x.mean(0)) / x.std(0), np.ones(len(x))])
    sign = 2.0 * y - 1

    def loss(w):
        z = sign * (x @ w)
        slope = -sign / (1 + np.exp(np.clip(z, -700, 700)))
        return np.logaddexp(0, -z).mean() + 0.5 * l2 * w @ w, x.T @ slope / len(y) + l2 * w

    return loss


def problems():
    """Give (name, loss_and_grad, start, the minimum or None)."""
    for n in (2, 10, 100):
        yield f"Rosenbrock, n = {n}", rosenbrock, np.tile([-1.2, 1.0], n // 2), 0.0
    yield "Beale", beale, np.array([1.0, 1.0]), 0.0
    yield "Himmelblau", himmelblau, np.array([0.0, 0.0]), 0.0
    for condition in (1e2, 1e4):
        yield f"quadratic, n = 50, κ = {condition:.0e}", quadratic(condition), np.ones(50), 0.0
    yield "Σ(w − log w), n = 10", logarithm, np.geomspace(1e-2, 1e2, 10), 10.0
    yield "saddle, from x = 1, y = 0", saddle, np.array([1.0, 0.0]), -0.25
    yield "logistic regression, breast cancer", logistic_regression(), np.zeros(31), None


def bounded_problems():
    """Give (name, loss_and_grad, start, low, high): the standard ones half way to their minimum, and others."""
    rng = np.random.default_rng(1)
    for name, (residuals, start, _) in STANDARD.items():
        function, start = squares(residuals), np.array(start, float)
        free = rv.minimize(function, start.copy(), gradient_tolerance=1e-8).x
        ends = np.sort([start, 0.5 * (start + free)], axis=0)
        half = rng.random(start.size) < 0.5
        yield f"{name}, between", function, start, *ends
        yield f"{name}, half between", function, start, *np.where(half, ends, [[-np.inf], [np.inf]])
    for condition in (1e2, 1e4, 1e6):
        shift, of = rng.standard_normal(50), quadratic(condition)
        name = f"quadratic, n = 50, κ = {condition:.0e}"
        yield f"{name}, ≥ 0", lambda w, of=of, a=shift: of(w - a), np.ones(50), np.zeros(50), np.full(50, np.inf)
        yield (
            f"{name}, in [0, ½]",
            lambda w, of=of, a=shift: of(w - a),
            np.full(50, 0.3),
            np.zeros(50),
            np.full(50, 0.5),
        )
    for n in (2, 10, 100):
        start = np.clip(np.tile([-1.2, 1.0], n // 2), -1.5, 0.5)
        yield f"Rosenbrock, n = {n}, in [−1.5, ½]", rosenbrock, start, np.full(n, -1.5), np.full(n, 0.5)
    limit = np.full(31, 0.3)
    yield "logistic regression, in ±0.3", logistic_regression(), np.zeros(31), -limit, limit


def ours(function, start, method, bounds=None):
    """Return loss, largest gradient, iterations, calls."""
    result = rv.minimize(function, start.copy(), method, gradient_tolerance=TOLERANCE, bounds=bounds)
    return result.fun, largest(result.x, result.jac, bounds), result.nit, result.nfev


def largest(x, gradient, bounds):
    """Return the largest element of the projected gradient."""
    if bounds is not None:
        low, high = bounds
        gradient = np.where(gradient > 0, np.minimum(gradient, x - low), np.maximum(gradient, x - high))
    return float(abs(gradient).max())


def scipys(function, start, method, bounds=None):
    calls = 0

    def counted(w):
        nonlocal calls
        calls += 1
        return function(w)

    def stop(intermediate_result):
        if abs(function(intermediate_result.x)[1]).max() <= TOLERANCE:
            raise StopIteration

    options = {"maxiter": 1000}
    options |= {"gtol": TOLERANCE, "ftol": 0, "maxcor": 10} if method == "L-BFGS-B" else {"xtol": 1e-15}
    callback = stop if method == "Newton-CG" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = scipy.optimize.minimize(
            counted,
            start,
            jac=True,
            method=method,
            options=options,
            callback=callback,
            bounds=None if bounds is None else scipy.optimize.Bounds(*bounds),
        )
    loss, gradient = function(result.x)
    return loss, largest(result.x, gradient, bounds), result.nit, calls


def rows():
    for name, function, start, minimum in problems():
        for method, peer in METHODS.items():
            yield name, method, minimum, ours(function, start, method), scipys(function, start, peer)


def standard_rows():
    """Give (name, ours, scipy's) of L-BFGS on the problems of Moré, Garbow and Hillstrom."""
    for name, (residuals, start, _) in STANDARD.items():
        function, start = squares(residuals), np.array(start, float)
        yield name, ours(function, start, "lbfgs"), scipys(function, start, "L-BFGS-B")


def bounded_rows():
    for name, function, start, *bounds in bounded_problems():
        yield name, ours(function, start, "lbfgs", bounds), scipys(function, start, "L-BFGS-B", bounds)


def calls(rows, apart=""):
    """Return both sums of calls, without one problem."""
    kept = [(mine[3], peers[3]) for name, mine, peers in rows if name != apart]
    return tuple(map(sum, zip(*kept, strict=True)))


def listed(rows, apart=""):
    """Return the lines of a list of (name, ours, scipy's), with the sums, also without one that ends elsewhere."""
    rows = list(rows)
    lines = [
        f"* {name}: {mine[3]} calls, loss {mine[0]:.6g}, g {mine[1]:.1e}; "
        f"scipy: {peers[3]}, {peers[0]:.6g}, {peers[1]:.1e}"
        for name, mine, peers in rows
    ]
    for without, words in [("", "all"), (apart, f"without {apart}")][: 2 if apart else 1]:
        mine, peers = calls(rows, without)
        lines.append(f"* **{words}: {mine} calls; scipy: {peers}**")
    return lines


def table():
    lines = [
        "| problem | method | calls | iterations | loss | max abs g | scipy: calls | iterations | loss | max abs g |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, method, _, mine, peers in rows():
        numbers = [f"{calls} | {nit} | {loss:.6g} | {norm:.1e}" for loss, norm, nit, calls in (mine, peers)]
        lines.append(f"| {name} | {method} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write the record there, too")
    output = parser.parse_args().output
    text = "\n".join(
        [
            "# rv.minimize beside scipy.optimize.minimize",
            "",
            f"* {platform.machine()}; ravine {rv.__version__}, scipy {scipy.__version__}, NumPy {np.__version__}",
            "* Command: `python -m benches.bench_minimize`",
            "* A call gives loss and gradient. Both stop at max abs g ≤ 1e-5 or after 1000 iterations. The peers are",
            "  scipy's L-BFGS-B (10 pairs) and Newton-CG, without Hessians. Counts, no times: they repeat.",
            "",
            table(),
            "",
            "## L-BFGS on the problems of Moré, Garbow and Hillstrom",
            "",
            *listed(standard_rows(), ELSEWHERE),
            "",
            "On Powell's badly scaled function rounding decides in which step the gradient happens to be small: scipy",
            "ends before the minimum.",
            "",
            "## Bounds",
            "",
            "g is the projected gradient.",
            "",
            *listed(bounded_rows()),
            "",
        ]
    )
    print(text)
    if output:
        output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
