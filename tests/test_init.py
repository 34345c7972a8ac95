"""Initial weights: bounds and spreads by the formulas, and the draws' independence of the dtype."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravine import init

UNIFORM = {
    "uniform_fan_in": lambda n_in, n_out: 1 / math.sqrt(n_in),
    "xavier_uniform": lambda n_in, n_out: math.sqrt(6 / (n_in + n_out)),
    "he_uniform": lambda n_in, n_out: math.sqrt(6 / n_in),
}
NORMAL = {
    "xavier_normal": lambda n_in, n_out: math.sqrt(2 / (n_in + n_out)),
    "he_normal": lambda n_in, n_out: math.sqrt(2 / n_in),
}
RANDOM = [*UNIFORM, *NORMAL]
GAINS = [(1.0, 1.0), (0.5, 0.5), ("linear", 1.0), ("tanh", 1.0), ("sigmoid", 4.0), ("relu", math.sqrt(2))]


@pytest.mark.parametrize("gain, factor", GAINS)
@pytest.mark.parametrize("shape, fans", [((30, 200), (30, 200)), ((3, 2, 20, 50), (120, 300))])
@pytest.mark.parametrize("name", UNIFORM)
def test_uniform_fills_its_bounds(name, shape, fans, gain, factor):
    w = getattr(init, name)(shape, np.random.default_rng(0), np.float64, gain=gain)
    bound = factor * UNIFORM[name](*fans)
    assert w.shape == shape
    # 6000 draws: each end is missed by 1 % with probability 0.995^6000 = 1e-13; std and mean within 5 standard errors
    assert 0.99 * bound < w.max() <= bound
    assert -bound <= w.min() < -0.99 * bound
    assert w.std() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert abs(w.mean()) < 5 * bound / math.sqrt(3 * w.size)


@pytest.mark.parametrize("gain, factor", GAINS)
@pytest.mark.parametrize("shape, fans", [((30, 200), (30, 200)), ((3, 2, 20, 50), (120, 300))])
@pytest.mark.parametrize("name", NORMAL)
def test_normal_has_its_deviation(name, shape, fans, gain, factor):
    w = getattr(init, name)(shape, np.random.default_rng(0), np.float64, gain=gain)
    deviation = factor * NORMAL[name](*fans)
    assert w.std() == pytest.approx(deviation, rel=5 / math.sqrt(2 * w.size))
    assert abs(w.mean()) < 5 * deviation / math.sqrt(w.size)
    assert (abs(w) > 2 * deviation).mean() == pytest.approx(0.0455, abs=0.015)  # a normal tail, not a uniform one


@pytest.mark.parametrize("name", ["he_normal", "he_uniform"])
def test_he_keeps_the_second_moment_through_relu_layers(name):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 300))
    for _ in range(4):
        x = np.maximum(x @ getattr(init, name)((300, 300), rng, np.float64), 0)
    assert (x**2).mean() == pytest.approx(0.5 * 2, rel=0.25)  # E relu(z)² = Var z / 2 = E x², which starts at 1


@given(seed=st.integers(0, 2**32), name=st.sampled_from(RANDOM))
def test_every_dtype_gets_the_same_draws_rounded_once(seed, name):
    draw = getattr(init, name)
    wide = draw((4, 3), np.random.default_rng(seed), np.float64)
    for dtype in (np.float32, np.float16):
        assert np.array_equal(draw((4, 3), np.random.default_rng(seed), dtype), wide.astype(dtype))


def test_bfloat16():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    w = init.he_normal((4, 3), np.random.default_rng(0), ml_dtypes.bfloat16)
    assert w.dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize("name", RANDOM)
def test_default_is_float32(name):
    assert getattr(init, name)((4, 3), np.random.default_rng(0)).dtype == np.float32


@pytest.mark.parametrize("name, value", [("zeros", 0), ("ones", 1)])
def test_constants_do_not_draw(name, value):
    rng, untouched = np.random.default_rng(0), np.random.default_rng(0)
    w = getattr(init, name)((2, 3), rng, np.float16)
    assert w.shape == (2, 3)
    assert w.dtype == np.float16
    assert (w == value).all()
    assert rng.random() == untouched.random()
    assert getattr(init, name)(4, rng).shape == (4,)


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize(
    "arguments, error, words",
    [
        (((3,), np.random.default_rng(0)), ValueError, r"shape: expected \(..., n_in, n_out\), all >= 1, got \(3,\)"),
        ((3, np.random.default_rng(0)), ValueError, r"got \(3,\)"),
        (((0, 3), np.random.default_rng(0)), ValueError, r"all >= 1, got \(0, 3\)"),
        (((2, 3), "0"), TypeError, r"rng: expected a Generator such as np.random.default_rng\(0\), .* got str"),
        (((2, 3), None), TypeError, "rng: expected a Generator .* got NoneType"),
        (((2, 3), 0.5), TypeError, "rng: expected a Generator .* got float"),
        (((2, 3), True), TypeError, "rng: expected a Generator .* got bool"),
        (((2, 3), -1), ValueError, "rng: expected a seed >= 0, got -1"),
        (((5.5, 3), np.random.default_rng(0)), TypeError, r"shape: expected an integer or .* got \(5.5, 3\)"),
        (((5, 3.0), np.random.default_rng(0)), TypeError, r"shape: expected an integer or .* got \(5, 3.0\)"),
        (("ab", np.random.default_rng(0)), TypeError, "shape: expected an integer or .* got 'ab'"),
        (((2, 3), np.random.default_rng(0), int), TypeError, "dtype: expected a floating dtype .* got int64"),
    ],
)
def test_wrong_arguments_are_named(name, arguments, error, words):
    with pytest.raises(error, match=words):
        getattr(init, name)(*arguments)


@pytest.mark.parametrize("name", [*RANDOM, "zeros", "ones"])
def test_a_seed_stands_for_its_generator(name):
    draw = getattr(init, name)
    for seed in (0, 7, np.int64(7)):
        assert np.array_equal(draw((2, 3), seed), draw((2, 3), np.random.default_rng(seed)))


@pytest.mark.parametrize("name", ["zeros", "ones"])
@pytest.mark.parametrize("shape", [(5.5, 3), 2.5, np.array([2.0])])
def test_a_shape_is_never_truncated(name, shape):
    with pytest.raises(TypeError, match="shape: expected an integer or a tuple of integers"):
        getattr(init, name)(shape, 0)


def test_shapes_of_any_integers():
    assert init.zeros(np.array([2, 3]), 0).shape == init.zeros([np.int64(2), 3], 0).shape == (2, 3)
    with pytest.raises(ValueError, match=r"shape: expected lengths >= 0, got \(-1, 2\)"):
        init.zeros((-1, 2), 0)


@pytest.mark.parametrize("gain", [0.0, -1.0, math.inf, math.nan, "gelu"])
def test_wrong_gains_are_named(gain):
    with pytest.raises(ValueError, match="gain: expected"):
        init.he_normal((2, 3), np.random.default_rng(0), gain=gain)
