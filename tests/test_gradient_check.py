"""check_gradient: right gradients pass, wrong ones fail, and the parameters come back bit for bit."""

import math

import numpy as np
import pytest

import ravine as rv
from benches import transformer
from tests.conftest import JaxLike, WithArray

METHODS = ["central", "one_sided"]
RNG = np.random.default_rng(7)
A = RNG.standard_normal((6, 6))
H = (A + A.T) / 2
C = RNG.standard_normal(6)
X = RNG.standard_normal((20, 6))


def linear(w):
    return C @ w, C


def quadratic(w):
    return 0.5 * w @ H @ w, H @ w


def quartic(w):
    return (w**4).sum(), 4 * w**3


def oscillating(w):
    return np.sin(X @ w).sum(), X.T @ np.cos(X @ w)


def logarithmic(w):
    return np.log(1 + w * w).sum(), 2 * w / (1 + w * w)


def relu_with_far_kinks(w):
    z = np.array([2.0, -2.0, 3.0, 1.5, -1.0, 4.0]) + 0.1 * w
    return (np.maximum(z, 0) ** 2).sum(), 0.2 * np.maximum(z, 0)


def least_squares_at_the_minimum(w):
    r = X @ w - X @ PLACE
    return 0.5 * r @ r, X.T @ r


PLACE = RNG.standard_normal(6)
LOSSES = [
    linear,
    quadratic,
    quartic,
    oscillating,
    logarithmic,
    relu_with_far_kinks,
    least_squares_at_the_minimum,
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("seed", range(5))
def test_right_gradient_passes(loss, method, seed):
    result = rv.check_gradient(loss, PLACE.copy(), method=method, rng=np.random.default_rng(seed))
    assert result, result
    assert result.passed is True
    assert len(result.errors) == len(result.epsilons)


WRONG = {
    "sign": lambda j: -j,
    "factor": lambda j: 1.001 * j,
    "doubled": lambda j: 2 * j,
    "one element": lambda j: j + np.eye(len(j))[2] * 0.01,
    "shuffled": lambda j: j[::-1],
    "zero": lambda j: 0 * j,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("loss", LOSSES[:-1])
@pytest.mark.parametrize("mistake", WRONG)
def test_wrong_gradient_fails(loss, method, mistake):
    result = rv.check_gradient(lambda w: (loss(w)[0], WRONG[mistake](loss(w)[1])), PLACE.copy(), method=method)
    assert not result, result
    assert result.message.startswith("wrong gradient")
    assert result.order < (2.2 if method == "central" else 1.5)


def test_order_is_what_taylor_says():
    """For Σw⁴ the central error is 4Σwu³·ε³, the one-sided one about 6Σw²u²·ε², to a few per cent at small ε."""
    epsilons = [1e-2, 3e-3, 1e-3]
    w = np.array([1.0, 2.0, 3.0])
    central = rv.check_gradient(quartic, w, epsilons=epsilons)
    assert central.order == pytest.approx(3, abs=0.01)
    one_sided = rv.check_gradient(quartic, w, method="one_sided", epsilons=epsilons)
    assert one_sided.order == pytest.approx(2, abs=0.01)
    u = np.random.default_rng(0).standard_normal(3)
    u /= math.sqrt(u @ u)
    assert central.errors == pytest.approx([abs(4 * (w @ u**3)) * e**3 for e in epsilons], rel=1e-4)
    assert one_sided.errors == pytest.approx([6 * (w**2 @ u**2) * e**2 for e in epsilons], rel=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_terms_that_cancel_raise_the_floor(method):
    """Terms of 1e8 leave a loss near 1, with the rounding of the terms; |L| alone would put the floor far below it."""
    w = np.array([1e8, -1e8, 1e8, -1e8 + 1]) / 3
    result = rv.check_gradient(lambda w: (w.sum(), np.ones(4)), w, method=method)
    assert result, result
    assert result.floor > 1e-8
    assert not rv.check_gradient(lambda w: (w.sum(), 1.1 * np.ones(4)), w, method=method)


@pytest.mark.parametrize("loss", [linear, quadratic])
def test_central_errors_of_a_quadratic_are_rounding(loss):
    result = rv.check_gradient(loss, PLACE.copy())
    assert max(result.errors) <= result.floor < 1e-11
    assert result.order == math.inf


@pytest.mark.parametrize("method", METHODS)
def test_float32_right_and_wrong(method):
    w = PLACE.astype(np.float32)
    assert rv.check_gradient(lambda w: (np.sin(w).sum(), np.cos(w)), w, method=method)
    assert not rv.check_gradient(lambda w: (np.sin(w).sum(), 0.8 * np.cos(w)), w, method=method)
    assert w.dtype == np.float32


def absolute(w):
    return abs(w).sum(), np.where(w > 0, 1.0, -1.0)


def test_kink_at_the_place_itself_fails_and_is_reported():
    result = rv.check_gradient(absolute, np.array([1.0, 0.0]))
    assert not result
    assert "the slopes on the two sides of w differ" in result.message


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("distance", [2e-2, 1e-3, 1e-4])
def test_kink_at_a_distance_passes_and_is_reported(method, distance):
    result = rv.check_gradient(absolute, np.array([1.0, distance]), method=method)
    assert result, result
    assert "the slopes on the two sides of w differ" in result.message


@pytest.mark.parametrize("method", METHODS)
def test_wrong_gradient_next_to_a_kink_fails(method):
    result = rv.check_gradient(lambda w: (absolute(w)[0], 1.01 * absolute(w)[1]), np.array([1.0, 1e-3]), method=method)
    assert not result


def test_smooth_losses_report_no_kink():
    for loss in LOSSES:
        assert "two sides" not in rv.check_gradient(loss, PLACE.copy()).message


def test_the_wrong_parameter_is_named():
    params = {"hidden": {"w": PLACE.copy(), "b": np.ones(2)}, "out": [np.array(0.5), (np.full((2, 2), 0.3),)]}

    def loss(p, wrong=1.0):
        w, b, s, m = p["hidden"]["w"], p["hidden"]["b"], p["out"][0], p["out"][1][0]
        value = np.sin(w).sum() * s + np.exp(b).sum() + (m**3).sum()
        gradient = {"out": [np.sin(w).sum(), (wrong * 3 * m**2,)], "hidden": {"b": np.exp(b), "w": np.cos(w) * s}}
        return value, gradient

    assert rv.check_gradient(loss, params)
    assert rv.check_gradient(lambda p: loss(p, 1.1), params).message.endswith("wrong in out.1.0")


def test_parameters_are_restored_bit_for_bit():
    w = np.array([0.1, -0.0, 5e-324, 1e300, -3.7])
    before = w.tobytes()
    rv.check_gradient(lambda w: (np.sin(w[:3]).sum(), np.cos(w) * [1, 1, 1, 0, 0]), w)
    assert w.tobytes() == before


@pytest.mark.parametrize("fatal_call", [1, 2, 3, 8])
def test_parameters_are_restored_when_the_loss_raises(fatal_call):
    w, calls = PLACE.copy(), []

    def loss(w):
        calls.append(None)
        if len(calls) == fatal_call:
            w += 1
            raise ZeroDivisionError
        return quadratic(w)

    with pytest.raises(ZeroDivisionError):
        rv.check_gradient(loss, w)
    assert w.tobytes() == PLACE.tobytes()


def test_a_gradient_array_that_each_call_overwrites_is_copied():
    buffer = np.empty(6)

    def loss(w):
        buffer[...] = 4 * w**3
        return (w**4).sum(), buffer

    assert rv.check_gradient(loss, PLACE.copy())
    assert rv.check_gradient(lambda w: (0.5 * w @ w, w), PLACE.copy())  # the gradient is the parameter itself


def test_strided_parameters():
    wide = np.ones((6, 2))
    before = wide.copy()
    w = wide[:, 0]
    assert rv.check_gradient(quartic, w)
    assert np.array_equal(wide, before)


def test_a_loss_that_hides_every_change_says_so():
    result = rv.check_gradient(lambda w: (1e15 + w.sum(), np.ones(6)), PLACE.copy())
    assert "says little" in result.message
    assert "says little" not in rv.check_gradient(linear, PLACE.copy()).message


# Losses and gradients that are coarser than the parameters

WIDE = np.random.default_rng(3).standard_normal(20)


def in_float32(w, factor=1.0):
    """A loss that casts its parameters first, as JAX does unless it is told otherwise."""
    w = w.astype(np.float32)
    return np.sin(w).sum(), np.float32(factor) * np.cos(w)


#: How a library hands out loss and gradient, from what was computed in float32 or, where it says so, in float64.
HANDED = {
    "float32": lambda w, factor: in_float32(w, factor),
    "0-d arrays": lambda w, factor: tuple(np.asarray(a) for a in in_float32(w, factor)),
    "JAX": lambda w, factor: tuple(JaxLike(a) for a in in_float32(w, factor)),
    "__array__": lambda w, factor: tuple(WithArray(a) for a in in_float32(w, factor)),
    "Python's floats": lambda w, factor: (float(in_float32(w)[0]), in_float32(w, factor)[1].astype(np.float64)),
    "only the loss": lambda w, factor: (in_float32(w)[0], factor * np.cos(w)),
    "only the loss, a float": lambda w, factor: (float(in_float32(w)[0]), factor * np.cos(w)),
    "only the gradient": lambda w, factor: (np.sin(w).sum(), in_float32(w, factor)[1]),
    "only the gradient, cast": lambda w, factor: (np.sin(w).sum(), in_float32(w, factor)[1].astype(np.float64)),
    "a loss of shape (1,)": lambda w, factor: (in_float32(w)[0].reshape(1), in_float32(w, factor)[1]),
}
every_hand = pytest.mark.parametrize("hand", HANDED.values(), ids=HANDED)


@every_hand
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("error")
def test_coarser_losses_and_gradients_pass_if_they_are_right(hand, method):
    for seed in range(5):
        found = rv.check_gradient(lambda w: hand(w, 1.0), WIDE.copy(), method=method, rng=seed)
        assert found, found.message
        assert "in float32" in found.message
        # C·u of the loss and of its terms, wherever the parameters were.
        assert found.floor >= 64 * 2.0**-24 * (abs(np.sin(WIDE).sum()) + abs(np.cos(WIDE) * WIDE).sum())
    assert not rv.check_gradient(lambda w: hand(w, 1.1), WIDE.copy(), method=method)


def test_float16_is_coarser_still():
    def loss(w):
        return np.sin(w).sum().astype(np.float16), np.cos(w)

    found = rv.check_gradient(loss, WIDE.astype(np.float32))
    assert found, found.message
    assert "(loss in float16)" in found.message


@pytest.mark.parametrize(
    "loss, place",
    [
        *((loss, PLACE) for loss in LOSSES),
        (lambda w: absolute(w), np.array([1.0, 2e-2])),  # the gradient changes from -1 to 1: short numbers
        (lambda w: (float(np.rint(w).sum()), 0 * w), PLACE),  # a count
        (lambda w: (w.sum(), np.ones(4)), np.array([1e8, -1e8, 1e8, -1e8 + 1]) / 3),  # cancelled digits
        (lambda w: (0.5 * float(w @ w), w.copy()), np.zeros(6)),
    ],
)
def test_float64_is_not_taken_for_float32(loss, place):
    assert "float32" not in rv.check_gradient(loss, place.copy()).message


# The smallest error that is seen


def sine(w, scale=1.0):
    """In float16 and float32 as in float64: what is checked is the check."""
    w = w.astype(np.float64)
    return scale * np.sin(w).sum(), scale * np.cos(w)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e9])
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_errors_just_above_the_smallest_are_seen_and_just_below_are_not(dtype, size, scale, method):
    w = (size * np.random.default_rng(1).standard_normal(8)).astype(dtype)
    found = rv.check_gradient(lambda w: sine(w, scale), w, method=method)
    assert found, found.message
    assert found.smallest_error == pytest.approx(found.smallest_relative_error * abs(found.slope))

    def verdict(error):
        """Of a gradient that is wrong by this share of itself, and so by as much of the slope."""
        return rv.check_gradient(lambda w: (sine(w, scale)[0], (1 + error) * sine(w, scale)[1]), w, method=method)

    if found.smallest_relative_error == math.inf:
        assert "no error of the slope would have been seen" in found.message
        return
    # An error of the other sign makes the gradient, and so the floor, smaller: it is seen no later.
    assert not verdict(1.1 * found.smallest_relative_error)
    assert not verdict(-1.1 * found.smallest_relative_error) or found.smallest_relative_error > 0.5
    assert any(verdict(sign * found.smallest_relative_error / 1.1) for sign in (-1, 1))
    # No less than the floor allows: two errors ε·δ have to stand out.
    assert found.smallest_error >= 0.9 * found.floor / found.epsilons[1]


def test_the_smallest_error_of_a_straight_loss_is_the_floor_over_the_second_step():
    """Nothing is truncated: an error δ shows as εδ, and is seen if two of them are above the floor."""
    found = rv.check_gradient(linear, PLACE.copy(), epsilons=[0.1, 0.01, 0.001])
    assert found.smallest_error == pytest.approx(found.floor / 0.01, rel=0.02)
    assert found.slope == pytest.approx(C @ direction(6), rel=1e-12)
    assert f"an error of the slope is seen from {found.smallest_error:.2g} on" in found.message


def direction(n):
    u = np.random.default_rng(0).standard_normal(n)
    return u / math.sqrt(u @ u)


@pytest.mark.parametrize("element", [0, 3])
def test_an_error_in_one_element_shows_by_its_share_of_the_direction(element):
    found = rv.check_gradient(linear, PLACE.copy())
    least = found.smallest_error / abs(direction(6)[element])
    for error, passes in ((1.1 * least, False), (least / 1.1, True)):
        wrong = C + error * np.eye(6)[element]
        assert bool(rv.check_gradient(lambda w, wrong=wrong: (C @ w, wrong), PLACE.copy())) is passes


@pytest.mark.parametrize("factor", [1.5, 2.0, -1.0])
def test_a_wrong_gradient_tells_the_smallest_error_too(factor):
    """That of the floor, since truncation cannot be told from the error."""
    wrong = rv.check_gradient(lambda w: (C @ w, factor * C), PLACE.copy())
    assert not wrong
    assert wrong.smallest_error == pytest.approx(wrong.floor / wrong.epsilons[1], rel=0.02)


def noisy():
    rng = np.random.default_rng(0)
    return lambda w: (w.sum() + rng.random(), np.ones_like(w))


def read_only():
    w = np.ones(3)
    w.flags.writeable = False
    return w


TWICE = np.ones(3)


@pytest.mark.parametrize(
    "loss, params, error, words",
    [
        (noisy(), np.ones(3), ValueError, "expected one loss for the same parameters"),
        (lambda w: (math.nan, w), np.ones(3), ValueError, "expected a finite loss, got nan at w"),
        (lambda w: (1 / w[0] if w[0] == 1 else math.inf, -w), np.ones(1), ValueError, "inf at distance 0.1 .*smaller"),
        (lambda w: (1.0, w * math.nan), np.ones(3), ValueError, "expected finite gradients, got others in params"),
        (lambda w: (1.0, w[:2]), np.ones(3), ValueError, r"params: expected shape \(3,\), got \(2,\)"),
        (lambda p: (1.0, {"b": p["a"]}), {"a": np.ones(3)}, ValueError, "missing a; unknown b"),
        (lambda p: (1.0, {"a": None}), {"a": np.ones(3)}, ValueError, r"a: expected shape \(3,\), got NoneType"),
        (quartic, np.ones(3, int), TypeError, "params: expected an array of float64, float32 or float16, got int64"),
        (quartic, [1.0, 2.0], TypeError, "0: expected an array of .*, got float"),
        (quartic, {"w": np.ones(2, complex)}, TypeError, r"w: .* got complex128; pass its real view"),
        (quartic, {"w": JaxLike(np.ones(2))}, ValueError, "w: a .*JaxLike that is read-only; pass a writable copy"),
        (quartic, {"w": WithArray(np.ones(2))}, TypeError, r"w: expected an array of .*got WithArray; pass np.array"),
        (
            lambda w: (w**4).sum(),
            np.ones(3),
            TypeError,
            r"loss_and_grad: expected \(loss, gradients\), got float64 alone",
        ),
        (lambda w: (1.0, w, {}), np.ones(3), TypeError, r"loss_and_grad: expected \(loss, gradients\), got 3 items"),
        (lambda w: (w**4, 4 * w**3), np.ones(3), TypeError, r"expected one number as loss, got shape \(3,\)"),
        (lambda w: ("1", w), np.ones(3), TypeError, "expected a number as loss, got str"),
        (lambda w: (1j, w), np.ones(3), TypeError, "expected a real number as loss"),
        (lambda w: (np.ones(1, complex), w), np.ones(3), TypeError, "expected a real number as loss"),
        (lambda w: (1.0, w * 1j), np.ones(3), TypeError, "gradients: params: expected real numbers, got complex128"),
        (lambda w: (1.0, w > 0), np.ones(3), TypeError, "gradients: params: expected real numbers, got bool"),
        (quartic, read_only(), TypeError, "params: expected a writable array"),
        (quartic, {}, ValueError, "expected at least one element"),
        (quartic, [TWICE, TWICE], ValueError, "same array under two names"),
    ],
)
def test_wrong_arguments_are_named(loss, params, error, words):
    with pytest.raises(error, match=words):
        rv.check_gradient(loss, params)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"rng": -1}, "rng: expected a seed >= 0, got -1"),
        ({"method": "centre"}, "method: expected 'central' or 'one_sided', got 'centre'"),
        ({"epsilons": [0.1]}, "epsilons: expected at least two"),
        ({"epsilons": [0.1, 0.0]}, "epsilons: expected at least two .* > 0"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        rv.check_gradient(quartic, np.ones(3), **options)


def test_the_transformer_that_benchmarks_train_has_the_right_gradient():
    rng = np.random.default_rng(0)
    params = transformer.new_params(rng, 7, length=6, width=8, blocks=2, dtype=np.float64)
    batch = rng.integers(0, 7, (3, 7))
    found = rv.check_gradient(lambda p: transformer.loss_and_grads(p, batch, heads=2), params)
    assert found, found.message


def test_its_places_see_none_that_come_later():
    rng = np.random.default_rng(0)
    (block,) = transformer.new_params(rng, 7, length=6, width=8, blocks=1, dtype=np.float64)["blocks"]
    x = rng.standard_normal((2, 6, 8))
    before, _ = transformer.attend(block, x, 2)
    x[:, 3] = rng.standard_normal((2, 8))
    after, _ = transformer.attend(block, x, 2)
    np.testing.assert_array_equal(after[:, :3], before[:, :3])
    assert (after[:, 3:] != before[:, 3:]).any(axis=-1).all()
