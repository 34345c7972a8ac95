"""rv.diagnose on problems whose answer is known: what kind of point, which rates, how noisy, which layers."""

import itertools
import math
import re
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ravine as rv
from tests.conftest import JaxLike, WithArray
from tests.test_hessian import COARSE, flat, like, matrix, nested, orthogonal, quadratic, waves

critical_point, escape_saddle = rv.diagnose.critical_point, rv.diagnose.escape_saddle
step_report, sharpness = rv.diagnose.step_report, rv.diagnose.sharpness
noise_scale, activation_report = rv.diagnose.noise_scale, rv.diagnose.activation_report


def rosenbrock(w):
    x, y = w
    return (1 - x) ** 2 + 100 * (y - x * x) ** 2, np.array([-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x)])


def monkey_saddle(w):
    x, y = w
    return x**3 - 3 * x * y * y, np.array([3 * x * x - 3 * y * y, -6 * x * y])


def flat_in_y(power, sign=1.0):
    """x² ± y^power: for power > 2 the second order says nothing about y."""
    return lambda w: (
        w[0] ** 2 + sign * w[1] ** power,
        np.array([2 * w[0], sign * power * w[1] ** (power - 1)]),
    )


def scaled(c):
    return lambda w: (0.5 * float((c * w * w).sum()), c * w)


def zeros(params):
    for array in rv.trees.leaves(params).values():
        array[...] = 0
    return params


# Critical points

SPECTRA = {
    "minimum": np.linspace(0.01, 3, 40),
    "maximum": np.linspace(-3, -0.01, 40),
    "saddle": np.concatenate([[-0.01], np.linspace(0.1, 3, 39)]),
    "flat": np.concatenate([[0.0], np.linspace(0.1, 3, 39)]),
}


@pytest.mark.parametrize("library", ["numpy", "cupy"])
@pytest.mark.parametrize("n", [9, 40])
@pytest.mark.parametrize("kind", SPECTRA)
def test_quadratics_of_a_given_spectrum(kind, n, library, gpu):
    xp = (np, gpu)[library == "cupy"]
    spectrum = np.concatenate([SPECTRA[kind][: n - 1], SPECTRA[kind][-1:]])
    params = zeros(nested(xp, n))
    found = critical_point(quadratic(matrix(spectrum), xp), params)
    assert found.kind == kind
    assert found.message.startswith(kind)
    assert (found.smallest, found.largest) == pytest.approx((spectrum.min(), spectrum.max()), abs=1e-6)
    assert max(found.errors) < 1e-4
    assert found.gradient_norm == 0


@pytest.mark.parametrize(
    "loss, place, kind",
    [
        (rosenbrock, [1, 1], "minimum"),
        (rosenbrock, [1.01, 1], "not critical"),
        (rosenbrock, [-1, 1], "not critical"),
        (lambda w: (-rosenbrock(w)[0], -rosenbrock(w)[1]), [1, 1], "maximum"),
        (
            lambda w: (w[0] ** 2 / 2 + 1000 * w[0] ** 3, w + 3000 * w * w),
            [5e-7],
            "minimum",
        ),  # curved, but not degenerate
        (monkey_saddle, [0, 0], "flat"),
        (monkey_saddle, [0.1, 0], "not critical"),
        (flat_in_y(2), [0, 0], "minimum"),
        (flat_in_y(2, -1), [0, 0], "saddle"),
        (flat_in_y(3), [0, 0], "flat"),
        (flat_in_y(4), [0, 0], "flat"),
        (flat_in_y(4, -1), [0, 0], "flat"),
        (lambda w: (w.sum(), np.ones(2)), [0, 0], "not critical"),
        (lambda w: (1.0, np.zeros(2)), [3, 4], "flat"),
        (lambda w: (1e-9 * (w @ w), 2e-9 * w), [0, 0], "minimum"),  # the loss's own scale does not matter
        (lambda w: (1e-9 * np.sin(w).sum(), 1e-9 * np.cos(w)), [0, 0], "not critical"),
    ],
)
def test_points_known_from_textbooks(loss, place, kind):
    assert critical_point(loss, np.array(place, float)).kind == kind


def test_rosenbrocks_eigenvalues():
    """H = [[802, −400], [−400, 200]] at (1, 1)."""
    found = critical_point(rosenbrock, np.ones(2))
    root = math.sqrt(501**2 - 400)
    assert (found.smallest, found.largest) == pytest.approx((501 - root, 501 + root), rel=1e-5)
    assert "all were computed" in found.message


@given(y=st.floats(-3e-3, 3e-3), power=st.sampled_from([3, 4, 5]), sign=st.sampled_from([1.0, -1.0]))
@settings(max_examples=60, deadline=None)
def test_no_verdict_near_a_degenerate_point(y, power, sign):
    """At y ≠ 0 the second derivative of y³ has a sign, and the gradient may be short enough; yet y = 0 is neither."""
    found = critical_point(flat_in_y(power, sign), np.array([0, y]))
    assert found.kind in ("flat", "undecided", "not critical")


def test_the_degenerate_point_is_what_decides_there():
    found = critical_point(flat_in_y(3), np.array([0, 5e-4]))
    assert found.gradient_norm < found.gradient_threshold
    assert found.smallest > found.threshold
    assert found.kind == "undecided"
    assert "changes by" in found.message
    # The user's product is taken at the end of that Newton step, too.
    own = critical_point(flat_in_y(3), np.array([0, 5e-4]), hvp=lambda w, v: v * np.array([2, 6 * w[1]]))
    assert own.kind == "undecided"


@given(
    power=st.floats(-9, 0),
    sign=st.sampled_from([-1.0, 0.0, 1.0]),
    dtype=st.sampled_from([np.float64, np.float32, np.float16]),
    shift=st.floats(0, 1),
)
@settings(max_examples=80, deadline=None)
def test_never_claims_what_the_arithmetic_cannot_carry(power, sign, dtype, shift):
    """The smallest eigenvalue may be anything; the verdict may be withheld, and must not be wrong."""
    least = sign * 10**power
    q = orthogonal(4)
    h = (q * [least, 1, 2, 5]) @ q.T
    w = (shift * q[:, 1]).astype(dtype)
    place = w.astype(np.float64)

    def loss(w):
        x = w.astype(np.float64) - place
        return 0.5 * x @ h @ x, (h @ x).astype(dtype)

    found = critical_point(loss, w)
    right = {-1: "saddle", 0: "flat", 1: "minimum"}[int(sign)]
    if found.kind in ("minimum", "maximum", "saddle"):
        assert found.kind == right
    elif found.kind == "flat":
        assert abs(least) <= found.threshold
    else:
        assert found.kind == "undecided"
    if dtype == np.float64 and abs(least) > 1e-4:
        assert found.kind == right


def test_coarse_parameters_leave_the_sign_undecided():
    """x² + y⁴ in float32: the product is off by 4h², which is no curvature."""
    found = critical_point(flat_in_y(4), np.zeros(2, np.float32))
    assert found.kind == "undecided"
    assert "params of float64" in found.message


def test_tolerance_is_relative_to_the_curvature_and_to_w():
    w = np.array([3.0, 4.0])
    loss, minimum = scaled(np.array([1.0, 2.0])), w * (1 - 1e-4)
    found = critical_point(lambda p: loss(p - minimum), w)
    assert found.kind == "not critical"
    assert found.gradient_threshold == pytest.approx(1e-6 * 2 * 5)
    assert "more than" in found.message
    assert critical_point(lambda p: loss(p - minimum), w, tol=1e-3).kind == "minimum"


def test_ones_own_product_decides():
    found = critical_point(scaled(np.array([1.0, 2.0])), np.zeros(2), hvp=lambda w, v: v * [1, -2])
    assert found.kind == "saddle"


def test_a_linear_network_of_two_layers_at_zero():
    """L = |XUV − Y|²/2N: at zero the Hessian's eigenvalues are ± the singular values of XᵀY/N, and 0."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((50, 6)), rng.standard_normal((50, 4))

    def loss(p):
        r = x @ p["u"] @ p["v"] - y
        return 0.5 * (r * r).sum() / 50, {"u": x.T @ r @ p["v"].T / 50, "v": p["u"].T @ x.T @ r / 50}

    params = {"u": np.zeros((6, 5)), "v": np.zeros((5, 4))}
    found = critical_point(loss, params)
    sigma = np.linalg.norm(x.T @ y / 50, 2)
    assert found.kind == "saddle"
    assert (found.smallest, found.largest) == pytest.approx((-sigma, sigma), rel=1e-5)
    done = escape_saddle(loss, params)
    assert done.loss_after < done.loss_before
    assert done.loss_after == pytest.approx(loss(params)[0])


# All-zero initialisation


def tanh_network(sizes, init, seed=0):
    rng = np.random.default_rng(seed)
    first, second = (rv.nn.Linear(*pair, rng, init=init, dtype=np.float64) for pair in itertools.pairwise(sizes))
    return rv.nn.Sequential(first, rv.nn.Tanh(), second)


def loss_of(net, x, labels):
    def loss(params):
        value, dy = rv.nn.softmax_cross_entropy(net(x), labels)
        net.backward(dy)
        return value, net.grads

    return loss


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    images, labels = load_digits(n_class=3, return_X_y=True)
    return images[:200].reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, 16) / 16, labels[:200]


@pytest.mark.parametrize("init", [rv.init.zeros, rv.init.ones])
def test_equal_initialisation_keeps_units_equal(init, digits):
    net = tanh_network([16, 5, 3], init)
    optimizer, loss = rv.SGD(net.params, lr=0.5, momentum=0.5), loss_of(net, *digits)
    for _ in range(20):
        optimizer.step(loss(net.params)[1])
    weight = net.params[0]["weight"]
    assert np.ptp(weight, axis=1) == pytest.approx(np.zeros(16), abs=1e-12)
    assert (abs(weight).max() > 0) == (init is rv.init.ones)


def test_all_zero_weights_are_a_saddle_and_can_be_left(digits):
    """The output's bias learns how frequent the classes are, and there it ends: the other gradients stay zero."""
    net = tanh_network([16, 5, 3], rv.init.zeros)
    optimizer, loss = rv.SGD(net.params, lr=2.0), loss_of(net, *digits)
    for _ in range(400):
        optimizer.step(loss(net.params)[1])
    assert not net.params[0]["weight"].any()
    found = critical_point(loss, net.params)
    assert found.kind == "saddle"
    done = escape_saddle(loss, net.params)
    assert done.eigenvalue == pytest.approx(found.smallest, rel=1e-3)
    assert np.ptp(net.params[0]["weight"], axis=1).max() > 1e-3  # units differ now
    for _ in range(200):
        optimizer.step(loss(net.params)[1])
    assert loss(net.params)[0] < 0.1 * done.loss_before


# Convexity and symmetry


def test_a_convex_loss_is_so_along_segments_and_by_its_spectrum(digits):
    rng = np.random.default_rng(0)
    net = rv.nn.Sequential(rv.nn.Linear(16, 3, rng, dtype=np.float64))
    loss, params = loss_of(net, *digits), net.params
    weight, bias = params[0].values()
    for _ in range(5):
        ends = rng.standard_normal((2, 51))
        losses = []
        for t in np.linspace(0, 1, 9):
            x = (1 - t) * ends[0] + t * ends[1]
            weight[...], bias[...] = x[:48].reshape(16, 3), x[48:]
            losses.append(loss(params)[0])
        chord = np.linspace(losses[0], losses[-1], 9)
        assert (losses <= chord + 1e-12).all()
        found = rv.hessian.extreme_eigenvalues(loss, params)
        assert found.values[0] >= -2 * found.errors[0]


def test_the_average_of_two_equal_solutions_is_worse(digits):
    """Permuted hidden units give the same loss; a segment between them, or a negative eigenvalue: not convex."""
    net = tanh_network([16, 5, 3], rv.init.uniform_fan_in)
    loss = loss_of(net, *digits)
    optimizer = rv.Adam(net.params, lr=0.05)
    at_first = rv.hessian.extreme_eigenvalues(loss, net.params)
    assert at_first.values[0] < -2 * at_first.errors[0]
    for _ in range(100):
        optimizer.step(loss(net.params)[1])
    solution = [array.copy() for array in rv.trees.leaves(net.params).values()]
    order = np.roll(np.arange(5), 1)
    twin = [solution[0][:, order], solution[1][order], solution[2][order], solution[3]]
    losses = []
    for t in (0, 0.5, 1):
        for array, a, b in zip(rv.trees.leaves(net.params).values(), solution, twin, strict=True):
            array[...] = (1 - t) * a + t * b
        losses.append(loss(net.params)[0])
    assert losses[2] == pytest.approx(losses[0], rel=1e-12)
    assert losses[1] > 5 * losses[0]


# Leaving a saddle


def hill(w):
    """x² − y² + 100y⁴."""
    x, y = w
    return x * x - y * y + 100 * y**4, np.array([2 * x, -2 * y + 400 * y**3])


def test_the_distance_is_halved_until_the_loss_falls():
    """From 1: the loss first falls where y² < 1/100, at 1/16."""
    w = np.zeros(2)
    done = escape_saddle(hill, w, distance=1.0)
    assert done.distance == 1 / 16
    assert abs(w) == pytest.approx([0, 1 / 16], abs=1e-6)
    assert (done.loss_before, done.loss_after) == (0, pytest.approx(-(1 / 256) + 100 / 65536))
    assert hill(w)[0] == done.loss_after
    assert done.eigenvalue == pytest.approx(-2)
    assert abs(done.direction) == pytest.approx([0, 1], abs=1e-6)


def test_a_fall_that_is_next_to_nothing_is_not_enough():
    """−y² exp(−20y²): lower than 0 everywhere, by 2e-9 at 1; a tenth of what −y² promises first at 1/4."""
    w = np.zeros(1)
    bump = lambda w: (  # noqa: E731
        float(-(w[0] ** 2) * math.exp(-20 * w[0] ** 2)),
        (40 * w**3 - 2 * w) * math.exp(-20 * w[0] ** 2),
    )
    assert escape_saddle(bump, w, distance=1.0).distance == 1 / 4


@pytest.mark.parametrize("seed", range(6))
def test_a_curvature_that_is_negative_by_rounding_is_none(seed):
    with pytest.raises(ValueError, match="expected a place of negative curvature"):
        escape_saddle(quadratic(matrix([0.0, 1, 2, 3], seed)), np.ones(4))


@pytest.mark.parametrize("y", [1e-3, -1e-3])
def test_it_goes_down_the_slope(y):
    w = np.array([0, y])
    escape_saddle(hill, w, distance=0.05)
    assert w[1] == pytest.approx(y + math.copysign(0.05, y))


def test_escape_moves_cupy_arrays_and_coarse_ones(gpu):
    for dtype in (np.float64, np.float32, np.float16):
        params = zeros(nested(gpu, 40, dtype))
        spectrum = np.concatenate([[-2.0], np.linspace(0.1, 1, 39)])
        done = escape_saddle(quadratic(matrix(spectrum), gpu), params)
        moved = flat(params)
        assert math.sqrt(float(moved @ moved)) == pytest.approx(0.1, rel=1e-2)
        assert done.loss_after == pytest.approx(-0.01, rel=0.05)
        assert params["a"].dtype == dtype


def test_where_nothing_is_to_be_left_nothing_is_changed():
    w = np.array([0.1, -0.3, 7.0])
    before = w.tobytes()
    for loss in (scaled(np.array([1.0, 2.0, 3.0])), scaled(np.zeros(3)), lambda w: (w.sum(), np.ones(3))):
        with pytest.raises(ValueError, match="expected a place of negative curvature, got eigenvalues from"):
            escape_saddle(loss, w)
        assert w.tobytes() == before
    with pytest.raises(RuntimeError, match=r"the loss falls nowhere .*check_gradient"):
        escape_saddle(lambda w: (1.0, -w), w)
    assert w.tobytes() == before


# A step


def test_rates_of_a_known_quadratic():
    c = np.array([0.5, 2.0, 8.0])
    w = np.array([1.0, -1.0, 2.0])
    report = step_report(scaled(c), w, lr=0.05, momentum=0.9)
    g = c * w
    assert report.gradient_norm == pytest.approx(np.linalg.norm(g))
    assert report.gradient_curvature == pytest.approx(g @ (c * g) / (g @ g))
    assert report.predicted == pytest.approx(-0.05 * g @ g + 0.5 * 0.05**2 * g @ (c * g))
    assert report.measured == pytest.approx(report.predicted)
    assert report.measured == pytest.approx(scaled(c)(w - 0.05 * g)[0] - scaled(c)(w)[0])
    assert report.largest_lr == pytest.approx(2 * (g @ g) / (g @ (c * g)))
    assert (report.smallest, report.largest) == pytest.approx((0.5, 8))
    assert report.condition_number == pytest.approx(16)
    assert report.stable_lr == pytest.approx(2 * 1.9 / 8)
    assert report.safe_lr == pytest.approx(1 / 8)
    assert report.best_lr == pytest.approx(2 / 8.5)
    assert report.best_factor == pytest.approx(15 / 17)


def test_a_small_enough_step_descends_however_ill_conditioned():
    """Erratum 5 of 000: not "no matter how small ε is"; 2gᵀg/gᵀHg is where it ends, for κ = 1e5 too."""
    c = np.array([0.1, 1e4])
    w = np.array([1.0, 1.0])
    report = step_report(scaled(c), w, lr=1.0)
    assert report.condition_number == pytest.approx(1e5, rel=1e-4)
    assert report.measured > 0
    assert f"descends for rates below {report.largest_lr:.3g}" in report.message
    for share, sign in ((1e-6, -1), (0.5, -1), (0.999, -1), (1.001, 1), (2, 1)):
        tried = step_report(scaled(c), w, lr=share * report.largest_lr)
        assert math.copysign(1, tried.measured) == math.copysign(1, tried.predicted) == sign


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_stable_below_the_named_rate_and_diverging_above(momentum):
    """Erratum 7 of 001: at 2/λ a quadratic oscillates for ever; it diverges only above."""
    c = np.array([3.0, 7.0])
    stable = step_report(scaled(c), np.ones(2), lr=0.1, momentum=momentum).stable_lr

    def after(lr, steps=2000):
        w = np.ones(2)
        optimizer = rv.SGD(w, lr=lr, momentum=momentum)
        for _ in range(steps):
            optimizer.step(c * w)
        return np.linalg.norm(w)

    assert after(0.99 * stable) < 1e-3
    assert after(1.01 * stable) > 1e3


def test_at_the_limit_a_quadratic_oscillates():
    report = step_report(scaled(np.array([4.0])), np.ones(1), lr=0.5)
    assert report.stable_lr == pytest.approx(0.5)
    assert "oscillates for ever" in report.message
    assert report.measured == pytest.approx(0, abs=1e-12)
    w = np.ones(1)
    optimizer = rv.SGD(w, lr=0.5)
    for step in range(50):
        optimizer.step(4 * w)
        assert w[0] == (-1) ** (step + 1)


def test_the_best_constant_rate_shrinks_by_its_factor():
    c = np.array([1.0, 4.0, 9.0])
    report = step_report(scaled(c), np.ones(3), lr=0.1)
    w = np.array([1.0, 0.0, 1.0])
    optimizer = rv.SGD(w, lr=report.best_lr)
    for k in range(1, 11):
        optimizer.step(c * w)
        assert abs(w) == pytest.approx([report.best_factor**k, 0, report.best_factor**k], rel=1e-5)


def test_along_negative_curvature_every_rate_descends_in_the_model():
    report = step_report(scaled(np.array([1.0, -2.0])), np.array([0.0, 1.0]), lr=0.1)
    assert report.gradient_curvature == pytest.approx(-2)
    assert report.largest_lr == math.inf
    assert math.isnan(report.condition_number)
    assert math.isnan(report.best_lr)
    assert "escape_saddle" in report.message
    concave = step_report(scaled(np.array([-1.0, -2.0])), np.ones(2), lr=0.1)
    assert concave.stable_lr == concave.safe_lr == math.inf


ADVICE = [
    (scaled(np.array([1.0, 2.0])), [1, 1], 0.5, "neither too large nor small"),
    (scaled(np.array([1.0, 2.0])), [1, 1], 0.01, r"the rate is small: up to 0\.5 is safe"),
    (scaled(np.array([1.0, 2.0])), [1, 1], 1.1, r"above 1, where a quadratic of this curvature diverges: 0\.5 is safe"),
    (scaled(np.array([1.0, 2.0])), [0, 0], 0.1, "gradient is zero, no rate .* critical_point"),
    (scaled(np.array([1.0, 1000.0])), [1, 1], 1e-3, r"ill-conditioned, κ = 1e\+03: at the best .* second-order method"),
    (scaled(np.array([0.0, 1.0])), [1, 1], 0.5, "κ = inf: flat directions hardly move"),
    (lambda w: (float((w**4).sum()), 4 * w**3), [1, 1], 0.15, "does not hold over a step of this length"),
    (lambda w: (float((w**4).sum()), 4 * w**3), [1, 1], 0.6, "the loss climbs: .* descends for rates below"),
    (lambda w: (w[0] ** 2 if w[0] > 0 else math.inf, 2 * w), [1.0], 0.9, "loss is inf after the step: lower the rate"),
    (lambda w: (w[0] ** 2 if w[0] > 0 else 5.0, 2 * w), [1.0], 0.8, "climbs where the second order descends"),
]


@pytest.mark.parametrize("loss, place, lr, words", ADVICE)
def test_advice(loss, place, lr, words):
    report = step_report(loss, np.array(place, float), lr=lr)
    assert re.search(words, report.message)
    assert all(sentence in report.message for sentence in report.advice)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_step_of_coarse_parameters_is_that_of_the_stored_ones(dtype, gpu):
    params = nested(gpu, 40, dtype)
    report = step_report(quadratic(matrix(np.linspace(1, 4, 40)), gpu), params, lr=0.1)
    assert report.measured == pytest.approx(report.predicted, rel=2e-2)
    assert report.largest == pytest.approx(4, rel=2e-2)


# Sharpness


def recording(places):
    def loss(params):
        places.append(rv.trees.map(np.copy, params))
        return 0.5 * float((flat(params) ** 2).sum()), rv.trees.map(np.copy, params)

    return loss


@pytest.mark.parametrize("axis", [-1, 0])
def test_each_filter_moves_by_its_own_length(axis):
    rng = np.random.default_rng(1)
    params = {
        "w": rng.standard_normal((4, 3)),
        "c": rng.standard_normal((2, 3, 5)),
        "b": np.ones(4),
        "s": np.array(2.0),
    }
    params["w"][:, 1] = 0 if axis == -1 else params["w"][:, 1]
    places = []
    sharpness(recording(places), params, distances=[2.0], directions=1, filter_axis=axis)
    moved = rv.trees.map(np.subtract, places[-1], params)
    if axis == -1:
        length = {"w": lambda a: np.linalg.norm(a, axis=0), "c": lambda a: np.linalg.norm(a, axis=(0, 1))}
        assert not moved["w"][:, 1].any()
    else:
        length = {"w": lambda a: np.linalg.norm(a, axis=1), "c": lambda a: np.linalg.norm(a, axis=(1, 2))}
    for name in ("w", "c"):
        assert length[name](moved[name]) == pytest.approx(2 * length[name](params[name]))
    assert np.linalg.norm(moved["b"]) == pytest.approx(2 * 2)
    assert abs(moved["s"]) == pytest.approx(4)


def test_directions_are_not_the_parameters_once_more():
    """Many parameters were drawn by seed 0: along them the loss says nothing about other directions."""
    w, places = np.random.default_rng(0).standard_normal(1000), []
    sharpness(recording(places), w, distances=[1.0], directions=1)
    d = places[-1] - w
    assert abs(d @ w) < 0.2 * np.linalg.norm(d) * np.linalg.norm(w)


def test_losses_are_those_along_the_directions():
    """½|w + td|² has second difference |d|², and |d| = |w| for one filter."""
    w = np.array([3.0, 4.0])
    found = sharpness(scaled(np.ones(2)), w, distances=[-0.5, 0, 0.5], directions=4)
    assert found.losses.shape == (4, 3)
    assert found.losses[:, 1] == pytest.approx([12.5] * 4)
    assert found.losses[:, 0] - 2 * found.losses[:, 1] + found.losses[:, 2] == pytest.approx([25 / 4] * 4)
    assert found.loss == 12.5
    assert found.largest == pytest.approx(1)
    assert len({round(float(loss), 6) for loss in found.losses[:, 0]}) == 4


def test_rescaled_layers_change_the_eigenvalue_and_not_the_losses(digits, gpu):
    """ReLU(ax) = aReLU(x): what Li et al. normalise filters for."""
    for xp in (np, gpu):
        x, labels = (xp.asarray(array) for array in digits)
        found = []
        for a in (1.0, 10.0):
            rng = np.random.default_rng(0)
            net = rv.nn.Sequential(
                rv.nn.Linear(16, 8, rng, dtype=np.float64), rv.nn.ReLU(), rv.nn.Linear(8, 3, rng, dtype=np.float64)
            )
            net.params[0]["weight"] *= a
            net.params[2]["weight"] /= a
            for layer in net.layers[::2]:
                for name, array in layer.params.items():
                    layer.params[name] = xp.asarray(array)
            found.append(sharpness(loss_of(net, x, labels), net.params, distances=[-1.0, 0.5], directions=2))
        assert found[1].losses == pytest.approx(found[0].losses, rel=1e-9)
        assert found[1].largest > 5 * found[0].largest


def test_a_sharp_minimum_has_the_larger_eigenvalue_and_a_flat_one_suffers_less_from_a_shift():
    sharp, broad = (sharpness(scaled(np.array([c, c])), np.ones(2)) for c in (100.0, 1.0))
    assert sharp.largest == pytest.approx(100 * broad.largest)
    assert (sharp.losses - sharp.loss)[:, -1] == pytest.approx(100 * (broad.losses - broad.loss)[:, -1])


def test_losses_that_are_not_finite_are_reported_and_not_refused():
    found = sharpness(lambda w: (float(w @ w) if w @ w < 20 else math.inf, 2 * w), np.ones(2), distances=[0, 10])
    assert found.losses[:, 0] == pytest.approx([2] * 3)
    assert np.isinf(found.losses[:, 1]).all()


# Batches


def linear_loss(params, x):
    """The mean of w·xᵢ: each sample's gradient is the sample, whatever w is."""
    return float((x @ params["w"]).mean()), {"w": x.mean(axis=0)}


SAMPLES = np.random.default_rng(4).standard_normal((400, 6)) * [3, 1, 1, 1, 1, 1] + 0.5
TRACE = SAMPLES.var(axis=0).sum()
SQUARE = (SAMPLES.mean(axis=0) ** 2).sum()


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("library", ["numpy", "cupy"])
def test_noise_of_known_gradients(replace, library, gpu):
    xp = (np, gpu)[library == "cupy"]
    w, data = {"w": xp.ones(6)}, xp.asarray(SAMPLES)
    sizes = [4, 20, 100, 200]
    found = noise_scale(linear_loss, w, data, batch_sizes=sizes, repeats=300, replace=replace)
    assert abs(found.scale - TRACE / SQUARE) < 4 * found.scale_error < found.scale
    assert found.gradient_square == pytest.approx(SQUARE, rel=0.2)
    assert found.noise_trace == pytest.approx(TRACE, rel=0.2)
    law = [TRACE / size * (1 if replace else (400 - size) / 399) for size in sizes]
    assert found.variances == pytest.approx(law, rel=0.25)
    assert found.squares == pytest.approx([SQUARE + c for c in law], rel=0.2)
    assert found.exponent == pytest.approx(-1, abs=0.06)
    assert found.batch_sizes.tolist() == sizes
    assert w["w"].tolist() == [1] * 6


@pytest.mark.parametrize("power", [-900, -600, 600, 900])
@pytest.mark.parametrize("library", ["numpy", "cupy"])
def test_the_noise_scale_does_not_depend_on_the_size_of_the_gradients(power, library, gpu):
    xp = (np, gpu)[library == "cupy"]
    w, sizes = {"w": xp.zeros(6)}, [4, 20, 100]
    ordinary = noise_scale(linear_loss, w, xp.asarray(SAMPLES), batch_sizes=sizes)
    found = noise_scale(linear_loss, w, xp.asarray(np.ldexp(SAMPLES, power)), batch_sizes=sizes)
    assert found.scale == pytest.approx(ordinary.scale, rel=1e-12)
    assert found.scale_error == pytest.approx(ordinary.scale_error, rel=1e-12)
    assert found.exponent == pytest.approx(ordinary.exponent, rel=1e-12)
    assert found.suggested_batch == ordinary.suggested_batch
    assert found.gradient_square == (math.inf if power > 0 else 0.0)  # it is no number of float64


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_norms_of_gradients_of_every_size_are_reported(scale):
    report = step_report(lambda w: (0.5 * scale * float(w @ w), scale * w), np.array([3.0, 4.0]), lr=0.5 / scale)
    assert report.gradient_norm == pytest.approx(5 * scale, rel=1e-14)
    assert report.stable_lr == pytest.approx(2 / scale, rel=1e-6)
    place = critical_point(lambda w: (scale * float(w.sum()), np.full(2, scale)), np.zeros(2))
    assert (place.kind, place.gradient_norm) == ("not critical", pytest.approx(scale * math.sqrt(2), rel=1e-14))


# Not of tiny ones: differences of gradients move each element as if it were at least 1.
@pytest.mark.parametrize("power", [520, 600])
def test_directions_are_normalised_by_filters_of_large_parameters(power):
    def found(power):
        # The loss sees the parameters at their ordinary size.
        return sharpness(
            lambda w: (0.5 * float((np.ldexp(w, -power) ** 2).sum()), np.ldexp(np.ldexp(w, -power), -power)),
            np.ldexp(np.arange(1.0, 13).reshape(3, 4), power),
            distances=[0.0, 0.5],
        )

    np.testing.assert_allclose(found(power).losses, found(0).losses, rtol=1e-12)


def test_the_estimates_are_those_of_the_two_batch_formula():
    """With replacement: (B'|g'|² − B|g|²)/(B' − B) and (|g|² − |g'|²)/(1/B − 1/B')."""
    found = noise_scale(linear_loss, {"w": np.ones(6)}, SAMPLES, batch_sizes=[5, 40], replace=True)
    few, many = found.squares
    assert found.gradient_square == pytest.approx((40 * many - 5 * few) / 35)
    assert found.noise_trace == pytest.approx((few - many) / (1 / 5 - 1 / 40))
    assert found.scale == pytest.approx(found.noise_trace / found.gradient_square)
    assert found.suggested_batch in (2 ** math.floor(math.log2(found.scale)), 2 ** math.ceil(math.log2(found.scale)))


def test_estimates_have_no_bias():
    """Averaged over many seeds they are tr Σ, ‖G‖² and the law, drawn without replacement too: eight samples."""
    x, n = SAMPLES[:8], 200
    runs = [
        noise_scale(linear_loss, {"w": np.ones(6)}, x, batch_sizes=[2, 6], repeats=4, rng=np.random.default_rng(seed))
        for seed in range(n)
    ]
    sigma, square = x.var(axis=0).sum(), (x.mean(axis=0) ** 2).sum()
    for true, values in (
        (sigma, [run.noise_trace for run in runs]),
        (square, [run.gradient_square for run in runs]),
        (sigma / 2 * 6 / 7, [run.variances[0] for run in runs]),
        (sigma / 6 * 2 / 7, [run.variances[1] for run in runs]),
    ):
        assert abs(np.mean(values) - true) < 4 * np.std(values) / math.sqrt(n)
        assert np.std(values) / math.sqrt(n) < 0.06 * true


def test_the_standard_error_is_the_spread_over_seeds():
    runs = [
        noise_scale(
            linear_loss, {"w": np.ones(6)}, SAMPLES, batch_sizes=[4, 100], repeats=60, rng=np.random.default_rng(seed)
        )
        for seed in range(60)
    ]
    assert np.mean([run.scale_error for run in runs]) == pytest.approx(np.std([run.scale for run in runs]), rel=0.3)


def test_all_samples_at_once_have_no_variance():
    found = noise_scale(linear_loss, {"w": np.ones(6)}, SAMPLES, batch_sizes=[10, 400], repeats=4)
    assert found.variances[1] == pytest.approx(0, abs=1e-25)
    assert found.gradient_square == pytest.approx(SQUARE)


def test_several_arrays_are_drawn_together():
    x = np.arange(50.0)

    def loss(w, a, b):
        assert np.array_equal(2 * a, b)
        assert len(set(a.tolist())) == len(a)  # without replacement
        return 0.0, np.array([a.mean()])

    noise_scale(loss, np.ones(1), (x, 2 * x), batch_sizes=[3, 50], repeats=3)


def test_the_batch_sizes_unless_given():
    assert noise_scale(linear_loss, {"w": np.ones(6)}, SAMPLES, repeats=2).batch_sizes.tolist() == [1, 3, 10, 32, 100]
    assert noise_scale(linear_loss, {"w": np.ones(6)}, SAMPLES[:2], repeats=2).batch_sizes.tolist() == [1, 2]


def test_a_gradient_of_zero_is_undetermined():
    # Squares that fall faster than 1/S leave nothing for ‖G‖².
    found = noise_scale(lambda w, x: (0.0, np.ones(1) / len(x)), np.ones(1), SAMPLES, batch_sizes=[2, 8], repeats=2)
    assert found.gradient_square < 0
    assert math.isnan(found.scale)
    assert found.suggested_batch is None
    assert "undetermined: the estimate of ‖G‖²" in found.message
    constant = noise_scale(lambda w, x: (0.0, np.ones(1)), np.ones(1), SAMPLES, repeats=2)
    assert "undetermined: the estimate of tr Σ" in constant.message
    assert math.isnan(constant.exponent)


def test_a_sum_in_place_of_a_mean_is_noticed():
    found = noise_scale(lambda w, x: (0.0, x.sum(axis=0)), np.ones(6), SAMPLES, repeats=100)
    assert found.exponent == pytest.approx(1, abs=0.1)
    assert "is the loss a mean" in found.message
    assert "is the loss a mean" not in noise_scale(linear_loss, {"w": np.ones(6)}, SAMPLES).message


@pytest.mark.parametrize(
    "options, words",
    [
        ({"batch_sizes": [4]}, "batch_sizes: expected at least two different ones"),
        ({"batch_sizes": [4, 4]}, "batch_sizes: expected at least two"),
        ({"batch_sizes": [0, 4]}, "batch_sizes: expected"),
        ({"batch_sizes": [4, 401]}, "at most 400, all samples"),
        ({"repeats": 1}, "repeats: expected an integer of at least 2, got 1"),
        ({"data": (SAMPLES, SAMPLES[:3])}, r"data: expected arrays of the same number .* got \[400, 3\]"),
        ({"data": SAMPLES[:1]}, "data: expected .* at least 2, got"),
        ({"data": [1.0, 2.0]}, r"data\[0\]: expected an array with a sample in each row, got list"),
    ],
)
def test_wrong_batches_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        noise_scale(linear_loss, {"w": np.ones(6)}, **({"data": SAMPLES} | options))


class Labelled:
    """A pandas Series or DataFrame, as far as rows go: ``[]`` looks up labels, ``iloc[]`` positions."""

    def __init__(self, values, index):
        self.values, self.index = np.asarray(values), list(index)
        self.shape = self.values.shape

    def __len__(self):
        return len(self.values)

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype)

    def __getitem__(self, labels):
        return self.iloc[[self.index.index(label) for label in labels]]

    @property
    def iloc(self):
        return Positions(self)


class Positions:
    def __init__(self, labelled):
        self.labelled = labelled

    def __getitem__(self, places):
        return Labelled(self.labelled.values[places], [self.labelled.index[place] for place in places])


def series(values, index):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    return (pandas.Series if np.ndim(values) == 1 else pandas.DataFrame)(values, index=index)


@pytest.mark.parametrize("kind", [Labelled, series])
@pytest.mark.parametrize("index", [[5, 4, 3, 2, 1, 0], [10, 11, 12, 13, 14, 15], [0, 0, 1, 1, 2, 2], list("abcdef")])
@pytest.mark.parametrize("replace", [False, True])
def test_rows_with_labels_are_drawn_by_position(kind, index, replace):
    x, drawn = np.arange(6.0), []

    def loss(w, a, b, c):
        drawn.append(np.asarray(a).tolist())
        assert np.asarray(b).tolist() == drawn[-1]
        assert np.asarray(c).tolist() == [[value, -value] for value in drawn[-1]]
        return 0.0, np.array([np.asarray(a).mean()])

    data = x, kind(x, index), kind(np.stack([x, -x], axis=1), index)
    noise_scale(loss, np.ones(1), data, batch_sizes=[2, 6], repeats=8, replace=replace)
    if not replace:
        assert all(sorted(batch) == x.tolist() for batch in drawn if len(batch) == 6)
    found, plain = (
        noise_scale(lambda w, a: (0.0, np.array([np.asarray(a).mean()])), np.ones(1), d, batch_sizes=[2, 4])
        for d in (kind(x, index), x)
    )
    assert found.message == plain.message


def test_pairs_of_batches_of_pandas_are_pairs_under_its_arithmetic():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    x, y = pandas.Series(np.arange(6.0), index=[5, 4, 3, 2, 1, 0]), pandas.Series(np.arange(6.0))

    def loss(w, a, b):
        assert (a - b).abs().max() == 0
        return 0.0, np.array([a.mean()])

    noise_scale(loss, np.ones(1), (x, y), batch_sizes=[2, 6], repeats=4)


def test_rows_of_other_libraries_are_drawn_too():
    data = SAMPLES.astype(np.float32)
    found, plain = (
        noise_scale(lambda w, x: (JaxLike(0), JaxLike(np.asarray(x).mean(axis=0))), np.ones(6), d)
        for d in (JaxLike(data), data)
    )
    assert found.message == plain.message
    assert "computed more coarsely than the parameters (loss in float32, gradients in float32)" in found.message
    assert found.scale == pytest.approx(noise_scale(linear_loss, {"w": np.ones(6)}, SAMPLES).scale, rel=1e-4)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_rounding_is_no_noise(dtype):
    """Gradients that all are g, but for a rounding that depends on the batch: nothing is said of their variance."""
    rng = np.random.default_rng(0)
    g = rng.uniform(1, 2, 500).astype(dtype)

    def loss(w, x):
        return 0.0, np.where(rng.random(500) < 0.5, g, np.nextafter(g, dtype(2)))

    found = noise_scale(loss, np.ones(500), np.ones(64), batch_sizes=[2, 16])
    assert "undetermined: the estimate of tr Σ is not above rounding" in found.message
    assert math.isnan(found.scale)
    assert math.isnan(found.exponent)
    assert found.gradient_square == pytest.approx(float((g.astype(float) ** 2).sum()), rel=1e-2)


# Layers


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [JaxLike, WithArray, memoryview, "bfloat16"])
def test_layers_of_other_libraries_are_read(kind):
    if kind == "bfloat16":
        kind = lambda x: x.astype(ml_dtypes.bfloat16)  # noqa: E731 (a dtype, beside classes)
    y = np.array([[0.0, 2.0], [0.0, 1.0]], np.float32)
    report = activation_report({"a": kind(y)}, {"a": [kind(2 * y), None]})
    assert report.dead.tolist() == [[0.5]]
    assert report.rms == pytest.approx(math.sqrt(5 / 4))
    assert report.gradient_rms == pytest.approx(math.sqrt(5))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_saturated_and_dead_units(dtype, gpu):
    for xp in (np, gpu):
        layers = {
            "tanh": xp.asarray([[0.9999, -0.99], [0.5, -0.2]], dtype),
            "sigmoid": xp.asarray([[0.99, 0.01], [0.5, 0.001]], dtype),
            "relu": xp.asarray([[[0, 2, 0]], [[0, 0, 3]]], dtype),
            "linear": xp.asarray([[-5, 0.5]], dtype),
        }
        report = activation_report(layers)
        assert report.names == tuple(layers)
        assert [row.kind for row in report.rows] == list(layers)
        assert report.saturated[0, :2].tolist() == [0.5, 0.75]
        assert report.dead[0, 2] == pytest.approx(1 / 3)
        assert np.isnan(report.saturated[0, 2:]).all()
        assert np.isnan(report.dead[0, [0, 1, 3]]).all()
        assert report.rms[0, 3] == pytest.approx(math.sqrt((25 + 0.25) / 2))
        assert report.message.startswith("sigmoid: 75% of the activations are saturated")
        assert type(report.rms) is np.ndarray


def test_flat_is_where_a_tenth_of_the_slope_is_left():
    """tanh' = 1 − y², σ' = y(1 − y)."""
    edge = math.sqrt(0.9)
    for y, kind, share in (
        ([edge + 1e-9, edge - 1e-9], "tanh", 0.5),
        ([(1 + edge) / 2 + 1e-9, (1 - edge) / 2 + 1e-9], "sigmoid", 0.5),
        ([4 + 2 * edge + 1e-9, 4 - 2 * edge - 1e-9], (2.0, 6.0), 1.0),
        ([4 + 1.9 * edge, 4.0], (2.0, 6.0), 0.0),
    ):
        report = activation_report({"y": np.array([y])}, kind={"y": kind})
        assert report.saturated.tolist() == [[share]]
    assert activation_report({"y": np.array([[0.9, 0.1]])}, kind="tanh", saturated_slope=0.2).saturated == 0.5


def test_a_network_that_is_started_too_large_saturates_and_one_too_small_vanishes():
    """Ten tanh layers of 32: normal weights of σ = g/√32. Small g: rms falls about as gˡ; large g: near ±1."""
    rng = np.random.default_rng(0)
    said = {}
    for gain in (0.3, 1.0, 30.0):
        x, layers = rng.standard_normal((64, 32)), {}
        for i in range(10):
            x = np.tanh(x @ rng.standard_normal((32, 32)) * gain / math.sqrt(32))
            layers[f"layer{i}"] = x
        said[gain] = activation_report(layers)
    assert said[1.0].message == "nothing unusual in any layer"
    assert "layer9: activations vanish" in said[0.3].message
    assert said[0.3].rms[0, 9] / said[0.3].rms[0, 8] == pytest.approx(0.3, rel=0.3)
    assert all("saturated" in row.findings[0] for row in said[30.0].rows)


def test_gradients_explode_and_vanish_towards_the_input():
    """A product of layers of spectral radius r changes a gradient about r-fold each: 000's QΛ¹⁰⁰Q⁻¹."""
    for radius, word in ((0.4, "vanish"), (2.5, "explode"), (1.0, "")):
        activations, gradients = {}, {}
        dy = np.ones(3)
        for i in reversed(range(12)):
            gradients[f"layer{i}"] = {"weight": dy, "bias": dy[:1]}
            dy = radius * orthogonal(3) @ dy
        for i in range(12):
            activations[f"layer{i}"] = np.array([[1.5, -1.5]])
        report = activation_report(activations, gradients)
        assert ("layer0: gradients " + word in report.message) == bool(word)
        assert report.gradient_rms[0, -1] == pytest.approx(1)
        assert "layer11: " not in report.message


def test_what_happens_over_time():
    y = np.array([[1.5, -1.5]])
    times = [{"a": y * 10.0**t, "b": y} for t in (0, 2, 4)]
    report = activation_report(times, [{"b": y[0] * s} for s in (1, 1e-2, 1e-5)])
    assert report.rms[:, 0] == pytest.approx([1.5, 150, 15000])
    assert report.gradient_rms[:, 1] == pytest.approx([1.5, 1.5e-2, 1.5e-5])
    assert np.isnan(report.gradient_rms[:, 0]).all()
    assert "a: activations explode: rms 1.5e+04, those at first 1.5" in report.message
    assert "b: activations vanish: rms 1.5, those of a 1.5e+04" in report.message
    assert "b: gradients" not in report.message  # they get smaller as training goes on
    grown = activation_report(times[:2], [{"b": y[0]}, {"b": y[0] * 1e4}])
    assert "b: gradients explode: rms 1.5e+04, those at first 1.5" in grown.message


def test_a_layer_of_zeros_is_no_measure():
    y = np.array([[1.5, -1.5]])
    assert "explode" not in activation_report({"a": 0 * y, "b": y}).message
    assert "b: activations vanish: rms 0," in activation_report({"a": y, "b": 0 * y}, kind="linear").message


def test_numbers_that_are_not_finite_are_reported_with_their_time():
    y = np.array([[1.5, -1.5]])
    times = [{"a": y}, {"a": y * [1, math.nan]}, {"a": y}]
    report = activation_report(times, [{"a": y}, {"a": y}, {"a": y * math.inf}])
    assert report.rms[:, 0].tolist() == [1.5, math.inf, 1.5]
    assert "a: activations are not finite at time 1" in report.message
    assert "a: gradients are not finite at time 2" in report.message
    assert activation_report({"a": y * 1e300}).rms == pytest.approx(1.5e300)


@pytest.mark.parametrize(
    "activations, options, error, words",
    [
        ([], {}, ValueError, "at least one layer"),
        ([np.ones((2, 2))], {}, TypeError, r"activations\[0\]: expected a dict of layers by name, got ndarray"),
        ({"a": np.ones(2)}, {"gradients": {"a": [1j]}}, TypeError, r"gradients\[0\]\['a'\]: 0: expected a float array"),
        ({"a": np.ones(2)}, {"factor": "2"}, TypeError, "factor: expected a finite number > 1, got str"),
        ([{}], {}, ValueError, "at least one layer"),
        ([{"a": np.ones((2, 2))}, {"b": np.ones((2, 2))}], {}, ValueError, r"activations\[1\]: expected the layers"),
        ({"a": [1.0]}, {}, TypeError, r"activations\[0\]\['a'\]: expected a float array, got list"),
        ({"a": np.ones(2, int)}, {}, TypeError, "expected a float array, got int64"),
        ({"a": np.ones((0, 2))}, {}, ValueError, r"expected samples and units, got shape \(0, 2\)"),
        ({"a": np.ones(2)}, {"kind": "gelu"}, ValueError, r"kind\['a'\]: expected one of relu, tanh, .* got 'gelu'"),
        ({"a": np.ones(2)}, {"kind": (1.0, 0.0)}, ValueError, r"bounds \(low, high\), got \(1.0, 0.0\)"),
        ({"a": np.ones(2)}, {"kind": {"b": "relu"}}, ValueError, r"kind: expected layers among \['a'\], got 'b'"),
        ({"a": np.ones(2)}, {"gradients": {"b": np.ones(2)}}, ValueError, r"gradients\[0\]: .* got \['b'\] too"),
        ({"a": np.ones(2)}, {"gradients": []}, ValueError, "gradients: expected as many times .* 1, got 0"),
        ({"a": np.ones(2)}, {"factor": 1.0}, ValueError, "factor: expected a finite number > 1"),
        ({"a": np.ones(2)}, {"share": 2.0}, ValueError, "share: expected"),
        ({"a": np.ones(2)}, {"saturated_slope": 0.0}, ValueError, "saturated_slope: expected"),
    ],
)
def test_wrong_layers_are_named(activations, options, error, words):
    with pytest.raises(error, match=words):
        activation_report(activations, **options)


# Restoring, and what is refused

CALLS = {
    "critical_point": critical_point,
    "escape_saddle": escape_saddle,
    "step_report": lambda loss, params: step_report(loss, params, lr=0.1),
    "sharpness": sharpness,
    "noise_scale": lambda loss, params: noise_scale(lambda p, x: loss(p), params, SAMPLES),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def saddle(params):
    x = flat(params)
    sign = 1 - 2 * (np.arange(x.size) == 0)
    return 0.5 * (sign * x * x).sum(), like(params, sign * x)


@every_call
@pytest.mark.parametrize("n", [5, 40])
def test_parameters_are_restored_bit_for_bit(call, n):
    wide = np.random.default_rng(0).standard_normal((n, 2)).astype(np.float32)
    before = wide.copy()
    for fatal in (1, 2, 7, None):
        calls = []

        def loss(params, calls=calls, fatal=fatal):
            calls.append(None)
            if len(calls) == fatal:
                params["w"] += 1
                raise ZeroDivisionError
            return saddle(params)

        if fatal:
            with pytest.raises(ZeroDivisionError):
                call(loss, {"w": wide[:, 0]})
        else:
            call(loss, {"w": wide[:, 0]})
        assert wide[:, 1].tobytes() == before[:, 1].tobytes()
        if fatal or call is not escape_saddle:
            assert wide.tobytes() == before.tobytes()
        else:
            assert wide.tobytes() != before.tobytes()


@every_call
@pytest.mark.parametrize(
    "loss, params, error, words",
    [
        (lambda w: (math.nan, w), np.ones(3), ValueError, "expected a finite loss, got nan (at w|on a batch of 1)"),
        (lambda w: (1.0, w * math.inf), np.ones(3), ValueError, "expected finite gradients, got others in params"),
        (lambda w: (1.0, w[:2]), np.ones(3), ValueError, r"params: expected shape \(3,\), got \(2,\)"),
        (lambda p: (1.0, {"b": p["a"]}), {"a": np.ones(3)}, ValueError, "missing a; unknown b"),
        (lambda w: 1.0, np.ones(3), TypeError, r"loss_and_grad: expected \(loss, gradients\), got float alone"),
        (lambda w: (w, w), np.ones(3), TypeError, r"loss_and_grad: expected one number as loss, got shape \(3,\)"),
        (lambda w: (1.0, w * 1j), np.ones(3), TypeError, "params: expected real numbers, got complex128"),
        (saddle, np.ones(3, complex), TypeError, "got complex128; pass its real view"),
        (saddle, [1.0, 2.0], TypeError, r"0: expected an array of .*, got float; pass np.array\(x, np.float64\)"),
        (saddle, JaxLike(np.ones(3)), ValueError, "params: a .*JaxLike that is read-only; pass a writable copy"),
        (saddle, np.ones(3, int), TypeError, "expected an array of float64, float32 or float16, got int64"),
    ],
)
def test_what_is_wrong_is_named(call, loss, params, error, words):
    with pytest.raises(error, match=words):
        call(loss, params)


@pytest.mark.parametrize(
    "call, options, words",
    [
        (critical_point, {"tol": -1.0}, "tol: expected a finite number ≥ 0"),
        (critical_point, {"curvature_tol": 1.0}, r"curvature_tol: expected a number in \[0, 1\)"),
        (escape_saddle, {"distance": 0.0}, "distance: expected a finite number > 0"),
        (step_report, {"lr": 0.0}, "lr: expected a finite number > 0"),
        (step_report, {"lr": 0.1, "rng": -2}, "rng: expected a seed >= 0"),
        (step_report, {"lr": math.nan}, "lr: expected a finite number > 0, got nan"),
        (step_report, {"lr": 0.1, "momentum": 1.0}, r"momentum: expected a number in \[0, 1\)"),
        (sharpness, {"directions": 0}, "directions: expected an integer of at least 1"),
        (sharpness, {"distances": []}, "distances: expected at least one finite number"),
        (sharpness, {"distances": [math.inf]}, "distances: expected"),
        (sharpness, {"filter_axis": 1}, "filter_axis: expected -1 .* or 0"),
    ],
)
def test_wrong_options_are_named(call, options, words):
    with pytest.raises(ValueError, match=words):
        call(saddle, np.ones(3), **options)


@pytest.mark.parametrize(
    "call, options, words",
    [
        (critical_point, {"tol": "1"}, "tol: expected a finite number ≥ 0, got str"),
        (critical_point, {"hvp": np.ones(3)}, "hvp: expected a function"),
        (escape_saddle, {"distance": [1.0, 2.0]}, "distance: expected a finite number > 0, got list"),
        (step_report, {"lr": None}, "lr: expected a finite number > 0, got NoneType"),
        (step_report, {"lr": rv.schedules.linear(1, 0, 9)}, "lr: .*; of a schedule pass one step's value"),
        (step_report, {"lr": 0.1, "rng": "0"}, "rng: expected a Generator such as .*, or a seed such as 0, got str"),
        (sharpness, {"distances": 1.0}, r"distances: expected a sequence of numbers, got float; pass \[x\]"),
        (sharpness, {"distances": ["1"]}, r"distances\[0\]: expected a number, got str"),
    ],
)
def test_options_of_another_type_are_named(call, options, words):
    with pytest.raises(TypeError, match=words):
        call(saddle, np.ones(3), **options)


@pytest.mark.parametrize("call", [*CALLS.values(), rv.check_gradient, rv.hessian.trace])
def test_a_loss_that_comes_after_the_parameters_is_noticed(call):
    if call is CALLS["noise_scale"]:
        call = lambda params, loss: noise_scale(params, loss, SAMPLES)  # noqa: E731 (the others are functions, too)
    with pytest.raises(TypeError, match="loss_and_grad: expected a function, which comes before params, got ndarray"):
        call(np.ones(3), saddle)


# Gradients that are coarser than the parameters


@pytest.mark.parametrize("loss", COARSE.values(), ids=COARSE)
def test_verdicts_on_coarse_gradients_are_those_on_coarse_parameters(loss):
    """waves has a minimum at 0, of curvatures AᵀA: the step of float64 finds none that is above its errors."""
    w = np.zeros(8)
    values = np.linalg.eigvalsh(waves(w)[2])
    found = critical_point(loss, w)
    assert found.kind == "minimum"
    assert [found.smallest, found.largest] == pytest.approx(values[[0, -1]], rel=1e-3)
    assert "in float32" in found.message
    report = step_report(loss, w + 0.1, lr=0.01)
    assert report.largest == pytest.approx(np.linalg.eigvalsh(waves(w + 0.1)[2])[-1], rel=1e-3)
    assert "in float32" in report.message.splitlines()[0]
    assert not any("does not hold" in advice or "climbs" in advice for advice in report.advice)
    sharp = sharpness(loss, w)
    assert sharp.largest == pytest.approx(values[-1], rel=1e-3)
    assert "in float32" in sharp.message


def test_a_saddle_is_left_by_coarse_gradients():
    c = np.array([1.0, -1.0, 2.0])
    w = np.zeros(3)
    moved = escape_saddle(lambda w: tuple(map(JaxLike, ((c * w * w).sum() / 2, c * w))), w)
    assert moved.eigenvalue == pytest.approx(-1, rel=1e-3)
    assert moved.loss_after < moved.loss_before
    assert "in float32" in moved.message


@pytest.mark.parametrize("call", list(CALLS)[:4])
def test_without_scipy_the_cure_is_named(call, monkeypatch):
    for name in ("scipy", "scipy.linalg", "scipy.sparse.linalg"):
        monkeypatch.setitem(sys.modules, name, None)
    w = np.ones(40)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ravine\[diagnose\]'"):
        CALLS[call](saddle, w)
    assert (w == 1).all()
