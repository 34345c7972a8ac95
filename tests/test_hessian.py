"""rv.hessian: products, extreme eigenvalues, spectral density and trace against matrices that are known."""

import math
import sys
from fractions import Fraction

import numpy as np
import pytest

import ravine as rv
from ravine.hessian import Operator, lanczos
from ravine.objective import Objective
from tests.conftest import JaxLike

DTYPES = [np.float64, np.float32, np.float16]


def orthogonal(n, seed=3):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]


def matrix(spectrum, seed=3):
    q = orthogonal(len(spectrum), seed)
    return (q * np.asarray(spectrum)) @ q.T


def flat(params):
    """The parameters as one float64 vector, in the order in which they stand."""
    arrays = rv.trees.leaves(params).values()
    xp = sys.modules["cupy"] if type(next(iter(arrays))).__module__ == "cupy" else np
    return xp.concatenate([array.reshape(-1).astype(np.float64) for array in arrays])


def like(params, x):
    parts, start = {}, 0
    for name, array in rv.trees.leaves(params).items():
        parts[name] = x[start : start + array.size].reshape(array.shape)
        start += array.size
    values = iter(parts.values())
    return rv.trees.map(lambda _: next(values), params)


def quadratic(h, xp=np, dtype=np.float64):
    """½wᵀHw, its gradient rounded to dtype as a network's would be."""
    h = xp.asarray(h)

    def loss(params):
        x = flat(params)
        return 0.5 * x @ (h @ x), like(params, (h @ x).astype(dtype))

    return loss


def quartic(params):
    x = flat(params)
    return (x**4).sum(), like(params, 4 * x**3)


def nested(xp, n, dtype=np.float64, seed=0):
    """n numbers in three arrays, one of them transposed."""
    w = np.random.default_rng(seed).standard_normal(n)
    return {
        "a": xp.asarray(w[:6].reshape(2, 3), dtype).T,
        "b": [xp.asarray(w[6:-1], dtype), xp.asarray(w[-1], dtype)],
    }


def never(params):
    raise AssertionError("the loss was called")


# Products


def exact(function):
    """The function in exact arithmetic, rounded once: no order of additions, and so no BLAS, has a say."""
    return lambda x: np.array([float(value) for value in function([Fraction(float(value)) for value in x])])


def times(h):
    rows = [[Fraction(float(value)) for value in row] for row in h]
    return exact(lambda x: [sum(a * b for a, b in zip(row, x, strict=True)) for row in rows])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("library", ["numpy", "cupy"])
def test_product_is_right_to_two_thirds_of_the_digits(dtype, library, gpu):
    """Within what a difference quotient loses, and what this machine's own matrix product loses.

    Hv is the sum of (g(x⁺) − g(x⁻))/2h along v, and along what rounding the places x⁺ and x⁻ to dtype left out of it.
    With S = max(1, |x|) and t = u^(1/3)/4, h = t/‖v/S‖, so that hv is tS long at most. Four things are lost.

    - A gradient is off by e, so the quotient by (e⁺ + e⁻)/2h ≤ e/h. Each e is measured in exact arithmetic: it is the
      matrix product's own error, and rounding to dtype. For any order of additions, fused ones or not, e is below
      n·2⁻⁵³·|H||x| + u|g| (Higham, "Accuracy and Stability of Numerical Algorithms", 2002, section 3.1).
    - What was left out in the end is missing: H times that. Nothing is made up for below √u‖v‖, or after three steps.
    - Where the curvature varies: with s = (x⁺ − x⁻)/2 and the middle m = (x⁺ + x⁻)/2, the quotient of 4x³ is exactly
      (12m²s + 4s³)/h, and 12m²s/h is off by 12|m² − x²||s|/h.
    - Dividing, subtracting and adding take 2⁻⁵³ of Hv each.

    With e near u|g| and h near u^(1/3), that is of the order of u^(2/3).
    """
    xp, n = (np, gpu)[library == "cupy"], 60
    params = nested(xp, n, dtype)
    x = np.array(flat(params).tolist())
    u = float(np.finfo(dtype).eps) / 2
    h = matrix(np.linspace(-1, 5, n))
    # A loss, its gradient, Hv, |H|, and whether H varies.
    cases = [
        (quadratic(h, xp, dtype), times(h), times(h), abs(h), False),
        (quartic, exact(lambda x: [4 * a**3 for a in x]), lambda v: 12 * x**2 * v, np.diag(12 * x**2), True),
    ]
    scale, t = np.maximum(abs(x), 1), u ** (1 / 3) / 4
    for loss, gradient, product, size, varies in cases:
        for v in (np.random.default_rng(1).standard_normal(n), np.eye(n)[4]):
            places, lost = [], []

            def measured(params, loss=loss, gradient=gradient, places=places, lost=lost):
                value, tree = loss(params)
                place, found = (np.array(flat(nesting).tolist()) for nesting in (params, tree))
                places.append(place)
                lost.append(np.linalg.norm(found - gradient(place)))
                return value, tree

            got = rv.hessian.hvp(measured, params, like(params, xp.asarray(v)))
            assert [p.shape for p in (got["a"], *got["b"])] == [(3, 2), (n - 7,), ()]
            assert got["a"].dtype == np.float64
            assert max(lost) <= (n * 2**-53 + u) * np.linalg.norm(size @ (abs(x) + t * scale))
            left, bound = v, 8 * 2**-53 * np.linalg.norm(product(v))
            for up, down, *errors in zip(places[::2], places[1::2], lost[::2], lost[1::2], strict=True):
                step, middle, length = (up - down) / 2, (up + down) / 2, t / np.linalg.norm(left / scale)
                left = left - step / length
                bound += sum(errors) / (2 * length)
                if varies:
                    bound += np.linalg.norm(12 * abs(middle**2 - x**2) * abs(step) + 4 * abs(step) ** 3) / length
            assert len(places) == 6 or np.linalg.norm(left) <= np.sqrt(u) * np.linalg.norm(v)
            bound += np.linalg.norm(product(left))
            assert np.linalg.norm(np.array(flat(got).tolist()) - product(v)) <= bound


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_estimated_error_is_about_the_true_one(dtype):
    n, u = 40, float(np.finfo(dtype).eps) / 2
    w = np.random.default_rng(0).standard_normal(n).astype(dtype)
    h = matrix(np.linspace(-1, 5, n))
    for loss, true in ((quadratic(h, dtype=dtype), h), (quartic, np.diag(12 * w.astype(np.float64) ** 2))):
        with Objective(loss, w) as objective:
            operator = Operator(objective)
            for seed in range(10):
                v = np.random.default_rng(seed).standard_normal(n)
                v /= np.linalg.norm(v)
                error, estimate = np.linalg.norm(operator(v) - true @ v), operator.error(v)
                assert error <= 2 * estimate
                assert estimate <= 10 * u ** (2 / 3) * np.linalg.norm(w.astype(np.float64)) * np.linalg.norm(true, 2)


def test_curvature_that_varies_is_in_the_estimate():
    """The third derivative of 4w³ is 24: at w = 0 the product with step h is 4h²v, and H is 0."""
    with Objective(quartic, np.zeros(1)) as objective:
        operator = Operator(objective)
        wrong = float(operator(np.ones(1))[0])
        assert wrong == pytest.approx((2**-53) ** (2 / 3) / 4)
        assert operator.error(np.ones(1)) == pytest.approx(3 * wrong, rel=1e-6)


@pytest.mark.parametrize("size", [1e-300, 1e-30, 1e30, 1e300])
def test_product_is_linear_in_the_length_of_v(size):
    loss, w, v = quadratic(matrix([1, 2, 3, 4])), np.ones(4), np.array([1.0, -2.0, 0.5, 4.0])
    one = rv.hessian.hvp(loss, w, v)
    assert rv.hessian.hvp(loss, w, size * v) / size == pytest.approx(one, rel=1e-8)


def test_product_with_zero_is_zero():
    assert rv.hessian.hvp(never, np.ones(3), np.zeros(3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype, large", [(np.float32, 1e6), (np.float32, 3e4), (np.float64, 1e13)])
def test_moves_that_rounding_swallows_are_made_up_for(dtype, large):
    """A step that suits the element of 1 is below the ulp of the large one."""
    h, w = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([large, 1], dtype)
    place = w.astype(np.float64)

    def loss(p):  # around w: of a gradient near 1e6 no difference could be told
        x = p.astype(np.float64) - place
        return 0.5 * x @ h @ x, h @ x

    for v in ([1.0, 1.0], [1.0, -2.0], [0.0, 1.0], [1.0, 0.0]):
        assert rv.hessian.hvp(loss, w, np.array(v)) == pytest.approx(h @ v, rel=1e-4, abs=1e-6)


def test_a_long_vector_of_many_small_parts_is_not_followed_too_far():
    """−cos(aᵀw) with |a| = 1: 10 000 elements that move by u^(1/3) each would go 0.4 along a, an error of 2 %."""
    a = np.full(10_000, 0.01)
    w = np.zeros(10_000, np.float32)
    product = rv.hessian.hvp(lambda w: (-math.cos(a @ w), a * math.sin(a @ w)), w, a)
    assert product == pytest.approx(a, rel=1e-4)


def test_the_users_own_product_is_taken_everywhere():
    h = matrix(np.linspace(-2, 3, 50))
    seen = []

    def own(params, v):
        seen.append(params["a"].copy())
        return like(params, h @ flat(v))

    params = nested(np, 50)
    found = rv.hessian.extreme_eigenvalues(never, params, hvp=own)
    assert found.values == pytest.approx([-2, 3], abs=1e-9)
    assert found.evaluations == 0
    v = first_signs(50)
    assert rv.hessian.trace(never, params, hvp=own, rng=np.random.default_rng(5)).samples[0] == pytest.approx(v @ h @ v)
    density = rv.hessian.spectrum_density(never, params, steps=50, probes=1, hvp=own)
    assert density.nodes == pytest.approx(np.linspace(-2, 3, 50), abs=1e-9)
    assert all(np.array_equal(a, params["a"]) for a in seen)


def test_a_product_of_ones_own_that_is_not_linear_has_a_large_error():
    with Objective(never, np.ones(2)) as objective:
        assert Operator(objective, lambda p, v: v).error(np.ones(2)) < 1e-15
        assert Operator(objective, lambda p, v: v + 0.1 * v**2).error(np.ones(2)) > 0.1


# Gradients that are coarser than the parameters


def waves(w):
    """−Σcos(aᵢᵀw), its gradient and its Hessian, in the dtype of w."""
    a = np.random.default_rng(4).standard_normal((12, w.size)).astype(w.dtype) / 3
    return -np.cos(a @ w).sum(), a.T @ np.sin(a @ w), (a.T * np.cos(a @ w)) @ a


def cast(w):
    loss, gradient, _ = waves(w.astype(np.float32))
    return loss, gradient


#: How libraries hand out what they compute in float32 of float64 parameters.
COARSE = {
    "float32": cast,
    "JAX": lambda w: tuple(map(JaxLike, cast(w))),
    "Python's floats": lambda w: (float(cast(w)[0]), cast(w)[1].astype(np.float64)),
    "a penalty added in float64": lambda w: (cast(w)[0], cast(w)[1] + 1e-12 * w),
}
every_coarse = pytest.mark.parametrize("loss", COARSE.values(), ids=COARSE)


@every_coarse
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_coarse_gradients_of_fine_parameters_have_the_products_of_coarse_ones(loss, scale):
    """The step is float32's, and so is the error: u^(2/3) of the curvature, as of float32 parameters."""
    n, u = 8, 2.0**-24
    w = scale * np.random.default_rng(0).standard_normal(n)
    h = waves(w.astype(np.float32).astype(np.float64))[2]
    for v in (np.random.default_rng(1).standard_normal(n), np.eye(n)[3]):
        scaled = np.linalg.norm(v / np.maximum(abs(w), 1))
        # e/h with e = u(|g| + what u of w does to g), h = u^(1/3)/4 over scaled; truncation h²|v|³ of |∂³L| ≤ Σ|a|³.
        a = np.linalg.norm(np.random.default_rng(4).standard_normal((12, n)) / 3, axis=1)
        rounding = 4 * u ** (2 / 3) * scaled * (12 * a.sum() + 3 * (a**2).sum() * np.linalg.norm(w))
        length = u ** (1 / 3) / 4 / scaled
        truncation = (a**4).sum() * length**2 * np.linalg.norm(v) ** 3 / 6
        assert np.linalg.norm(rv.hessian.hvp(loss, w, v) - h @ v) <= rounding + truncation


def test_the_product_is_no_worse_than_that_of_float32_parameters():
    """9.7 % off with the step of float64."""
    w, v = np.random.default_rng(0).standard_normal(50), np.random.default_rng(1).standard_normal(50)
    true = waves(w)[2] @ v
    coarse = rv.hessian.hvp(lambda w: waves(w)[:2], w.astype(np.float32), v)
    for name, loss in COARSE.items():
        found = rv.hessian.hvp(loss, w, v)
        assert np.linalg.norm(found - true) <= 4 * np.linalg.norm(coarse - true) < 1e-2 * np.linalg.norm(true), name


@every_coarse
def test_messages_say_what_was_coarse_and_errors_cover_it(loss):
    w = np.random.default_rng(0).standard_normal(40)
    values = np.linalg.eigvalsh(waves(w)[2])
    found = rv.hessian.extreme_eigenvalues(loss, w)
    assert "in float32" in found.message
    assert found.converged
    assert abs(found.values - values[[0, -1]]).max() <= 2 * found.errors.max() < 0.1 * values[-1]


def test_own_products_in_float32_are_as_coarse_as_they_are():
    h = matrix(np.linspace(-1, 5, 40)).astype(np.float32)
    found = rv.hessian.extreme_eigenvalues(never, np.ones(40), hvp=lambda p, v: JaxLike(h @ v.astype(np.float32)))
    assert found.values == pytest.approx([-1, 5], abs=1e-4)
    assert "products in float32" in found.message
    assert found.converged
    assert found.errors.max() > 1e-8


@pytest.mark.parametrize(
    "loss",
    [
        quartic,
        quadratic(matrix(np.linspace(-1, 5, 60))),
        quadratic(np.eye(60)),
        lambda p: (0.0, rv.trees.map(np.ones_like, p)),  # straight: the gradient never changes
        lambda p: (0.0, rv.trees.map(np.sign, p)),  # a kink: it changes from -1 to 1
    ],
)
@pytest.mark.parametrize("place", [0.0, 1.0])
def test_float64_gradients_are_not_taken_for_float32(loss, place):
    params = rv.trees.map(lambda a: np.full_like(a, place), nested(np, 60))
    found = rv.hessian.extreme_eigenvalues(loss, params)
    assert "float32" not in found.message
    product = rv.hessian.hvp(quadratic(np.eye(60)), params, like(params, np.eye(60)[7]))
    assert flat(product) == pytest.approx(np.eye(60)[7], abs=1e-9)


# Extreme eigenvalues


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("n", [12, 33, 80])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_both_ends_of_a_given_spectrum(n, k, dtype):
    spectrum = np.sort(np.random.default_rng(n).uniform(-3, 10, n))
    found = rv.hessian.extreme_eigenvalues(quadratic(matrix(spectrum), dtype=dtype), nested(np, n, dtype), k=k)
    expected = np.concatenate([spectrum[:k], spectrum[-k:]])
    accuracy = 1e-8 if dtype == np.float64 else 1e-3
    assert found.values == pytest.approx(expected, abs=10 * accuracy)
    assert (abs(found.values - expected) <= found.errors + 1e-12).all()
    assert (found.residuals <= found.errors).all()
    assert found.errors.max() < (1e-4 if dtype == np.float64 else 2e-2)
    assert found.converged
    assert found.complete == (n <= 32)
    q = orthogonal(n)[:, [*range(k), *range(n - k, n)]]
    for i, v in enumerate(found.vectors):
        assert abs(flat(v) @ q[:, i]) == pytest.approx(1, abs=1e-3)


def test_residuals_are_those_of_the_vectors():
    h = matrix(np.linspace(-1, 1, 100))
    found = rv.hessian.extreme_eigenvalues(quadratic(h), nested(np, 100), tol=1e-2)
    for value, v, residual in zip(found.values, map(flat, found.vectors), found.residuals, strict=True):
        assert np.linalg.norm(v) == pytest.approx(1)
        assert np.linalg.norm(h @ v - value * v) == pytest.approx(residual, rel=1e-3)


def test_numpy_and_cupy_give_the_same(gpu):
    h = matrix(np.linspace(-1, 4, 40))
    found = [
        rv.hessian.extreme_eigenvalues(quadratic(h, xp), nested(xp, 40), k=2, rng=np.random.default_rng(8))
        for xp in (np, gpu)
    ]
    assert found[0].values.tolist() == found[1].values.tolist()
    assert type(found[1].vectors[0]["a"]) is gpu.ndarray
    traces = [rv.hessian.trace(quadratic(h, xp), nested(xp, 40)).samples.tolist() for xp in (np, gpu)]
    assert traces[0] == traces[1]
    densities = [rv.hessian.spectrum_density(quadratic(h, xp), nested(xp, 40), probes=2) for xp in (np, gpu)]
    assert densities[0].nodes.tolist() == densities[1].nodes.tolist()
    assert type(densities[1].density) is np.ndarray


def test_an_end_near_zero_is_found_as_well_as_the_other():
    """Half of the spectrum is zero, as in networks: relative to λ_min itself, nothing would ever converge."""
    spectrum = np.concatenate([np.zeros(100), np.linspace(0.1, 1, 99), [10]])
    found = rv.hessian.extreme_eigenvalues(quadratic(matrix(spectrum)), nested(np, 200))
    assert found.converged
    assert found.values == pytest.approx([0, 10], abs=1e-5)
    assert found.evaluations < 400


@pytest.mark.parametrize("n", [1, 2, 40])
@pytest.mark.parametrize("value", [0.0, -3.0])
def test_a_multiple_of_the_identity(n, value):
    found = rv.hessian.extreme_eigenvalues(lambda w: (value * w @ w / 2, value * w), np.ones(n))
    assert found.values == pytest.approx([value] * len(found.values), abs=1e-8)
    assert len(found.values) == min(n, 2) or n == 40
    assert found.converged


def test_all_eigenvalues_if_k_asks_for_them():
    spectrum = np.linspace(-2, 2, 36)
    found = rv.hessian.extreme_eigenvalues(quadratic(matrix(spectrum)), nested(np, 36), k=20)
    assert found.values == pytest.approx(spectrum, abs=1e-8)
    assert found.complete


def test_without_convergence_the_residuals_say_so():
    spectrum = 1 - np.linspace(0, 1, 300) ** 3  # crowded at the upper end
    found = rv.hessian.extreme_eigenvalues(quadratic(matrix(spectrum)), nested(np, 300), tol=1e-12, max_iterations=1)
    assert not found.converged
    assert "larger tol or max_iterations" in found.message
    assert len(found.values) == 2
    assert found.errors.max() > 1e-8
    for value, error in zip(found.values, found.errors, strict=True):
        assert abs(spectrum - value).min() <= error
        assert -1e-9 <= value <= 1 + 1e-9


# Density and trace


def first_signs(n):
    return np.where(np.random.default_rng(5).standard_normal(n) < 0, -1.0, 1.0)


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_quadrature_is_exact_for_polynomials_up_to_twice_the_steps(steps):
    """Gauss: Σ weight·node^p = vᵀHᵖv/n for p < 2·steps."""
    h, n = matrix(np.random.default_rng(5).uniform(-1, 1, 30)), 30
    found = rv.hessian.spectrum_density(
        quadratic(h), nested(np, n), steps=steps, probes=1, rng=np.random.default_rng(5)
    )
    v = first_signs(n)
    for p in range(2 * steps):
        assert (found.weights * found.nodes**p).sum() == pytest.approx(
            v @ np.linalg.matrix_power(h, p) @ v / n, abs=1e-8
        )
    p = 2 * steps
    assert (found.weights * found.nodes**p).sum() != pytest.approx(v @ np.linalg.matrix_power(h, p) @ v / n, abs=1e-6)


def test_no_eigenvalue_comes_back_as_a_copy_of_itself():
    """The plain three-term recurrence finds the large ones here again and again."""
    spectrum = np.concatenate([[100.0, 50.0], np.linspace(0, 1, 58)])
    own = matrix(spectrum)
    found = rv.hessian.spectrum_density(never, np.zeros(60), probes=1, hvp=lambda _, v: own @ v)
    assert np.sort(found.nodes) == pytest.approx(np.sort(spectrum), abs=1e-9)
    with Objective(never, np.zeros(60)) as objective:
        _, _, basis = lanczos(Operator(objective, lambda _, v: own @ v), first_signs(60), 60)
    assert abs(basis @ basis.T - np.eye(60)).max() < 1e-12


def test_density_integrates_to_one_and_has_the_spectrums_moments():
    spectrum = np.random.default_rng(2).uniform(-1, 3, 60)
    h = matrix(spectrum)
    found = rv.hessian.spectrum_density(quadratic(h), nested(np, 60), probes=60)
    assert np.trapezoid(found.density, found.grid) == pytest.approx(1, abs=1e-6)
    assert found.weights.sum() == pytest.approx(1)
    assert (np.diff(found.nodes) >= 0).all()
    mean = np.trapezoid(found.density * found.grid, found.grid)
    assert mean == pytest.approx(spectrum.mean(), abs=4 * np.sqrt(2 * (h**2).sum() / 60) / 60)
    below = np.trapezoid(found.density * (found.grid < 1), found.grid)
    assert below == pytest.approx((spectrum < 1).mean(), abs=0.05)


def test_lanczos_stops_where_nothing_is_left():
    """With two distinct eigenvalues, two vectors span all that a start can reach."""
    h = matrix([1.0] * 30 + [5.0] * 10)
    found = rv.hessian.spectrum_density(never, np.zeros(40), probes=1, hvp=lambda _, v: h @ v)
    assert found.nodes == pytest.approx([1, 5])
    assert found.sigma == pytest.approx(0.05)


def test_each_node_is_a_gaussian_of_the_given_width():
    found = rv.hessian.spectrum_density(lambda w: (w @ w, 2 * w), np.zeros(5), probes=1, sigma=0.25, points=301)
    assert found.nodes == pytest.approx([2])
    normal = np.exp(-0.5 * ((found.grid - 2) / 0.25) ** 2) / (0.25 * math.sqrt(2 * math.pi))
    assert found.density == pytest.approx(normal, abs=1e-6)
    assert len(found.grid) == 301


def test_trace_of_a_known_matrix_within_its_standard_error():
    h, n = matrix(np.linspace(-1, 4, 30)), 30
    found = rv.hessian.trace(quadratic(h), nested(np, n), probes=400, rng=np.random.default_rng(5))
    v = first_signs(n)
    assert found.samples[0] == pytest.approx(v @ h @ v)
    assert found.value == pytest.approx(found.samples.mean())
    assert abs(found.value - np.trace(h)) < 4 * found.standard_error
    law = 2 * ((h**2).sum() - (np.diag(h) ** 2).sum())
    assert found.standard_error == pytest.approx(math.sqrt(law / 400), rel=0.15)


# A network


@pytest.fixture(scope="module")
def digits_network():
    """226 parameters: digits of 4 x 4, eight tanh units, ten classes; a few steps trained."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = images[:300].reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, 16) / 16
    rng = np.random.default_rng(0)
    net = rv.nn.Sequential(
        rv.nn.Linear(16, 8, rng, dtype=np.float64), rv.nn.Tanh(), rv.nn.Linear(8, 10, rng, dtype=np.float64)
    )

    def loss(params):
        assert params is net.params or all(a is b for a, b in zip(params, net.params, strict=True))
        value, dy = rv.nn.softmax_cross_entropy(net(x), labels[:300])
        net.backward(dy)
        return value, net.grads

    params = net.params
    optimizer = rv.Adam(params, lr=0.05)
    for _ in range(60):
        optimizer.step(loss(params)[1])
    names = list(rv.trees.leaves(params))
    assert names == ["0.weight", "0.bias", "2.weight", "2.bias"]
    columns = []
    for array in rv.trees.leaves(params).values():
        for i in np.ndindex(array.shape):
            before, ends = array[i], []
            for step in (1e-5, -1e-5):
                array[i] = before + step
                ends.append(flat(loss(params)[1]))
            array[i] = before
            columns.append((ends[0] - ends[1]) / 2e-5)
    dense = np.array(columns)
    assert abs(dense - dense.T).max() < 1e-8
    return loss, params, (dense + dense.T) / 2


def test_extreme_eigenvalues_of_the_digits_network(digits_network):
    loss, params, dense = digits_network
    values = np.linalg.eigvalsh(dense)
    assert values[0] < -1e-3 < 1 < values[-1]
    found = rv.hessian.extreme_eigenvalues(loss, params, k=3)
    assert found.values == pytest.approx([*values[:3], *values[-3:]], abs=1e-6 * values[-1])
    assert found.converged
    assert not found.complete
    assert found.errors.max() < 1e-5 * values[-1]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_coarse_parameters_of_the_digits_network(digits_network, dtype):
    loss, params, dense = digits_network
    coarse = rv.trees.map(lambda array: array.astype(dtype), params)

    def rounded(coarse):
        for array, place in zip(rv.trees.leaves(coarse).values(), rv.trees.leaves(params).values(), strict=True):
            place[...] = array
        value, grads = loss(params)
        return value, rv.trees.map(lambda g: g.astype(dtype), grads)

    before = [array.copy() for array in rv.trees.leaves(params).values()]
    try:
        found = rv.hessian.extreme_eigenvalues(rounded, coarse)
    finally:
        for array, place in zip(rv.trees.leaves(params).values(), before, strict=True):
            array[...] = place
    values, u = np.linalg.eigvalsh(dense), float(np.finfo(dtype).eps) / 2
    assert found.values[-1] == pytest.approx(values[-1], rel=10 * u ** (2 / 3))
    # A minimum is not claimed, nor any sign that the dtype cannot carry.
    assert abs(found.values[0] - values[0]) <= 2 * found.errors[0]
    assert found.errors.max() < 20 * u ** (2 / 3) * np.linalg.norm(flat(params)) * values[-1]


def test_trace_and_density_of_the_digits_network(digits_network):
    loss, params, dense = digits_network
    values = np.linalg.eigvalsh(dense)
    found = rv.hessian.trace(loss, params, probes=50)
    assert abs(found.value - values.sum()) < 4 * found.standard_error
    density = rv.hessian.spectrum_density(loss, params, probes=4)
    assert density.nodes[[0, -1]] == pytest.approx(values[[0, -1]], abs=1e-3 * values[-1])
    for bound in (0.01, 0.1, 0.3):
        share = (abs(values) > bound * values[-1]).mean()
        assert density.weights[abs(density.nodes) > bound * values[-1]].sum() == pytest.approx(share, abs=0.06)


# Restoring, and what is refused

CALLS = {
    "hvp": lambda loss, w: rv.hessian.hvp(loss, w, rv.trees.map(np.ones_like, w)),
    "extreme_eigenvalues": rv.hessian.extreme_eigenvalues,
    "spectrum_density": rv.hessian.spectrum_density,
    "trace": rv.hessian.trace,
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@every_call
@pytest.mark.parametrize("n", [5, 40])
def test_parameters_are_restored_bit_for_bit(call, n):
    wide = np.random.default_rng(0).standard_normal((n, 2)).astype(np.float32)
    before = wide.tobytes()
    call(quartic, {"w": wide[:, 0]})
    assert wide.tobytes() == before
    calls = []

    def fatal(params):
        calls.append(None)
        if len(calls) == 2:
            params["w"] += 1
            raise ZeroDivisionError
        return quartic(params)

    with pytest.raises(ZeroDivisionError):
        call(fatal, {"w": wide[:, 0]})
    assert wide.tobytes() == before


@every_call
@pytest.mark.parametrize(
    "loss, params, error, words",
    [
        (lambda w: (math.nan, w), np.ones(3), ValueError, r"expected a finite loss, got nan at w \+ h·v"),
        (lambda w: (1.0, w * math.inf), np.ones(3), ValueError, "expected finite gradients, got others in params"),
        (lambda w: (1.0, w[:2]), np.ones(3), ValueError, r"params: expected shape \(3,\), got \(2,\)"),
        (quartic, np.ones(3, int), TypeError, "expected an array of float64, float32 or float16, got int64"),
        (quartic, {}, ValueError, "expected at least one element"),
    ],
)
def test_what_is_wrong_is_named(call, loss, params, error, words):
    with pytest.raises(error, match=words):
        call(loss, params)


@pytest.mark.parametrize(
    "v, words",
    [
        (np.ones(2), r"v unlike params: params: expected shape \(3,\), got \(2,\)"),
        ({"w": np.ones(3)}, "v unlike params: missing params; unknown w"),
        (np.array([1, math.nan, 1]), "v: expected finite numbers, got nan"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(v, words):
    with pytest.raises(ValueError, match=words):
        rv.hessian.hvp(quartic, np.ones(3), v)


@pytest.mark.parametrize(
    "call, options, words",
    [
        ("trace", {"rng": -1}, "rng: expected a seed >= 0, got -1"),
        ("extreme_eigenvalues", {"k": 0}, "k: expected an integer of at least 1, got 0"),
        ("extreme_eigenvalues", {"k": 1.5}, "k: expected an integer"),
        ("extreme_eigenvalues", {"tol": 0.0}, r"tol: expected a number in \(0, 1\), got 0"),
        ("extreme_eigenvalues", {"max_iterations": 0}, "max_iterations: expected an integer of at least 1"),
        ("extreme_eigenvalues", {"hvp": lambda p, v: v[:1]}, "hvp: products unlike params"),
        ("extreme_eigenvalues", {"hvp": lambda p, v: v * math.nan}, "hvp: expected finite products"),
        ("spectrum_density", {"steps": 0}, "steps: expected"),
        ("spectrum_density", {"probes": 0}, "probes: expected"),
        ("spectrum_density", {"points": 1}, "points: expected an integer of at least 2"),
        ("spectrum_density", {"sigma": 0.0}, "sigma: expected a finite number > 0"),
        ("trace", {"probes": 1}, "probes: expected an integer of at least 2, got 1"),
    ],
)
def test_wrong_options_are_named(call, options, words):
    with pytest.raises(ValueError, match=words):
        getattr(rv.hessian, call)(quartic, np.ones(3), **options)


def test_a_seed_is_the_generator_of_it():
    one, other = (
        rv.hessian.trace(quadratic(matrix(range(5))), np.ones(5), rng=rng) for rng in (7, np.random.default_rng(7))
    )
    assert one.samples.tolist() == other.samples.tolist()
    with pytest.raises(TypeError, match=r"rng: expected a Generator such as .*, or a seed .*, got RandomState"):
        rv.hessian.trace(quartic, np.ones(5), rng=np.random.RandomState(0))


@pytest.mark.parametrize("call", ["extreme_eigenvalues", "spectrum_density"])
def test_without_scipy_the_cure_is_named(call, monkeypatch):
    for name in ("scipy", "scipy.linalg", "scipy.sparse.linalg"):
        monkeypatch.setitem(sys.modules, name, None)
    w = np.ones(40)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ravine\[diagnose\]'"):
        getattr(rv.hessian, call)(quartic, w)
    assert (w == 1).all()


def test_a_seed_stands_for_its_generator():
    def loss_and_grad(w):
        return float((w**4).sum()), 4 * w**3

    w = np.array([1.0, 2.0, 3.0])
    with_seed, given = (rv.hessian.trace(loss_and_grad, w, rng=rng) for rng in (0, np.random.default_rng(0)))
    assert with_seed.value == given.value
    with pytest.raises(TypeError, match=r"rng: expected a Generator .* or a seed such as 0, got str"):
        rv.hessian.trace(loss_and_grad, w, rng="0")
