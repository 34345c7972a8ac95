from __future__ import annotations

import itertools
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ravine as rv
from ravine import _core
from tests.reference import norms, tree

LEVELS = ["baseline", "avx2", "avx512"]
#: Sizes around the lanes and the vectors, and some primes.
SIZES = [1, 2, 3, 7, 8, 9, 31, 63, 64, 65, 97, 127, 128, 129, 130]
#: shape, axis: both trees, 2-D, 3-D and 4-D, short and long segments, several blocks.
SHAPES = [
    ((2, 1), 1),
    ((9, 5), 1),
    ((130, 17), -1),
    ((4100, 3), 1),
    ((3, 2, 7), 1),
    ((5, 4, 64), 1),
    ((2, 3, 300), 1),
    ((3, 3, 5, 7), 1),
    ((2, 16, 14, 14), 1),
    ((2, 5, 6, 9), -1),
    ((4, 5, 6), 0),
    ((2, 1, 4999), 1),
    ((3, 7, 11, 13), 2),
]
DTYPES = [np.float32, np.float64]


@pytest.fixture(autouse=True)
def restore_settings():
    threads, level = rv.num_threads(), _core.simd_level()
    yield
    rv.set_num_threads(threads)
    _core.set_simd(level)


def random(shape, dtype, seed=0, mean=0.0):
    return (np.random.default_rng(seed).standard_normal(shape) + mean).astype(dtype)


def bits(*arrays):
    return [np.asarray(a).tobytes() for a in arrays]


def close(got, expected, dtype, scale=None):
    """Assert an error of a few units in the last place of the largest number involved."""
    scale = np.max(np.abs(expected), initial=1e-300) if scale is None else scale
    assert np.max(np.abs(np.asarray(got, np.float64) - expected), initial=0.0) <= 8 * np.finfo(dtype).eps * scale


def close_sum(got, expected, dtype, count):
    """Assert the rounding of the result, and that of float64 sums of ``count`` terms about 1, in whatever order."""
    tolerance = 8 * np.finfo(np.float64).eps * count + np.finfo(dtype).eps * np.abs(expected)
    assert (np.abs(np.asarray(got, np.float64) - expected) <= tolerance).all()


def terms_of_channel(x, axis, c):
    return np.ascontiguousarray(np.take(x, c, axis=axis)).reshape(-1).astype(np.float64)


def tree_statistics(x, axis):
    """μ and σ² by the literal trees."""
    axis %= x.ndim
    channels, count = x.shape[axis], x.size // x.shape[axis]

    def sums(values):
        if axis == x.ndim - 1:
            return tree.sum_tree_rows(values.reshape(-1, channels))
        return np.array([tree.sum_tree(terms_of_channel(values, axis, c)) for c in range(channels)])

    mean = sums(x.astype(np.float64)) / count
    deviation = x.astype(np.float64) - norms.per_channel(mean, x.ndim, axis)
    return mean, sums(deviation * deviation) / count


# ---------------------------------------------------------------------------------------------------------------------
# Against the readable formulas


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_batch_norm_is_the_papers_formula(shape, axis, dtype):
    x, dy = random(shape, dtype, 1, mean=0.5), random(shape, dtype, 2)
    channels = shape[axis]
    weight, bias = random(channels, dtype, 3), random(channels, dtype, 4)
    if x.size // channels == 1:
        pytest.skip("one element a channel")
    y, saved = rv.batch_norm(x, weight, bias, axis=axis)
    expected, mean, var = norms.batch_norm_training(x, weight, bias, axis=axis)
    scale = np.max(np.abs(expected)) + np.max(np.abs(x)) * np.max(np.abs(weight)) * saved.inv_std.max()
    close(y, expected, dtype, scale)
    assert y.dtype == dtype
    np.testing.assert_allclose(saved.mean, mean, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(saved.inv_std, 1 / np.sqrt(var + 1e-5), rtol=1e-12)
    dx, dweight, dbias = rv.batch_norm_backward(dy, x, saved, weight)
    edx, edweight, edbias = norms.batch_norm_backward(dy, x, weight, axis=axis)
    magnitude = np.max(np.abs(weight)) * saved.inv_std.max() * np.max(np.abs(dy)) * np.sqrt(x.size)
    close(dx, edx, dtype, magnitude)
    close_sum(dweight, edweight, dtype, x.size)
    close_sum(dbias, edbias, dtype, x.size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_batch_norm_with_running_statistics_is_the_papers_formula(shape, axis, dtype):
    x, dy = random(shape, dtype, 1), random(shape, dtype, 2)
    weight, bias, mean = (random(shape[axis], dtype, seed) for seed in (3, 4, 5))
    var = np.abs(random(shape[axis], dtype, 6)) + dtype(0.1)
    before = bits(mean, var)
    y, saved = rv.batch_norm(x, weight, bias, mean, var, axis=axis, training=False)
    expected = norms.batch_norm_eval(x, weight, bias, mean, var, axis=axis)
    close(y, expected, dtype, np.max(np.abs(expected)) + 10)
    dx, dweight, dbias = rv.batch_norm_backward(dy, x, saved, weight)
    edx, edweight, edbias = norms.batch_norm_eval_backward(dy, x, weight, mean, var, axis=axis)
    close(dx, edx, dtype)
    close_sum(dweight, edweight, dtype, x.size)
    close_sum(dbias, edbias, dtype, x.size)
    assert bits(mean, var) == before


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("affine", ["vector", "scalar", "none"])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [((1, 1), 1), ((3, 5), 1), ((7, 64), 1), ((4, 3, 5), 2), ((6, 130), 1), ((20, 9, 2), 1), ((5,), 1)],
)
def test_layer_norm_is_the_papers_formula(shape, axes, affine, dtype):
    x, dy = random(shape, dtype, 1, mean=0.5), random(shape, dtype, 2)
    units = shape[-axes:]
    sizes = {"vector": units, "scalar": (), "none": units}[affine]
    weight, bias = (
        (np.ones(sizes, dtype), np.zeros(sizes, dtype))
        if affine == "none"
        else (random(sizes, dtype, 3), random(sizes, dtype, 4))
    )
    weight, bias = np.asarray(weight, dtype), np.asarray(bias, dtype)
    passed = (None, None) if affine == "none" else (weight, bias)
    y, saved = rv.layer_norm(x, *passed, axes=axes)
    expected, mean, var = norms.layer_norm(x, weight, bias, n=axes)
    scale = np.max(np.abs(expected)) + np.max(np.abs(x)) * np.max(np.abs(weight)) * saved.inv_std.max()
    close(y, expected, dtype, scale)
    np.testing.assert_allclose(saved.mean, np.ravel(mean), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(saved.inv_std, 1 / np.sqrt(np.ravel(var) + 1e-5), rtol=1e-12)
    dx, dweight, dbias = rv.layer_norm_backward(dy, x, saved, *passed)
    edx, edweight, edbias = norms.layer_norm_backward(dy, x, weight, n=axes)
    magnitude = np.max(np.abs(weight)) * saved.inv_std.max() * np.max(np.abs(dy)) * np.sqrt(x.size)
    close(dx, edx, dtype, magnitude)
    assert (dweight.shape, dbias.shape) == (weight.shape, bias.shape)
    close_sum(dweight, edweight, dtype, x.size)
    close_sum(dbias, edbias, dtype, x.size)


# ---------------------------------------------------------------------------------------------------------------------
# The promise on bits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_statistics_follow_the_canonical_tree(shape, axis, dtype):
    x = random(shape, dtype, 1, mean=3)
    _, saved = rv.batch_norm(x, axis=axis, eps=0.5)
    mean, var = tree_statistics(x, axis)
    assert bits(saved.mean, saved.inv_std) == bits(mean, 1 / np.sqrt(var + 0.5))


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 5),
    channels=st.integers(1, 17),
    pixels=st.sampled_from(SIZES),
    last=st.booleans(),
    double=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_statistics_follow_the_canonical_tree_for_any_shape(n, channels, pixels, last, double, seed):
    dtype = np.float64 if double else np.float32
    shape, axis = ((n, pixels, channels), 2) if last else ((n, channels, pixels), 1)
    if n * pixels == 1:
        shape = (2, *shape[1:])
    x = np.exp(random(shape, dtype, seed) * 5).astype(dtype)
    y, saved = rv.batch_norm(x, axis=axis)
    mean, var = tree_statistics(x, axis)
    assert bits(saved.mean, saved.inv_std) == bits(mean, 1 / np.sqrt(var + 1e-5))
    # The apply pass, in the array's dtype: x̄ rounded, and what that lost put into the shift.
    rounded = mean.astype(dtype)
    lost = rounded.astype(np.float64) - mean
    scale = saved.inv_std
    broadcast = [
        s.astype(dtype).reshape([-1 if a == axis else 1 for a in range(3)]) for s in (rounded, scale, lost * scale)
    ]
    assert bits(y) == bits((x - broadcast[0]) * broadcast[1] + broadcast[2])


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 20), units=st.sampled_from(SIZES), double=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_layer_norm_follows_the_canonical_tree_for_any_shape(rows, units, double, seed):
    dtype = np.float64 if double else np.float32
    x, dy = np.exp(random((rows, units), dtype, seed)).astype(dtype), random((rows, units), dtype, seed + 1)
    weight, bias = random(units, dtype, 1), random(units, dtype, 2)
    y, saved = rv.layer_norm(x, weight, bias)
    wide = x.astype(np.float64)
    mean = np.array([tree.sum_tree(row) for row in wide]) / units
    deviation = wide - mean[:, None]
    inv = 1 / np.sqrt(np.array([tree.sum_tree(row) for row in deviation * deviation]) / units + 1e-5)
    assert bits(saved.mean, saved.inv_std) == bits(mean, inv)
    rounded = mean.astype(dtype)
    shift = ((rounded.astype(np.float64) - mean) * inv).astype(dtype)
    normalised = (x - rounded[:, None]) * inv.astype(dtype)[:, None] + shift[:, None]
    assert bits(y) == bits(normalised * weight + bias)
    _, dweight, dbias = rv.layer_norm_backward(dy, x, saved, weight, bias)
    dy = dy.astype(np.float64)
    expected = tree.sum_tree_rows(dy * (deviation * inv[:, None])), tree.sum_tree_rows(dy)
    assert bits(dweight, dbias) == bits(*(sums.astype(dtype) for sums in expected))


def everything(x, dy, axis, weight, bias):
    """All results of both layers, as bytes."""
    running = [np.zeros_like(weight), np.ones_like(weight)]
    y, saved = rv.batch_norm(x, weight, bias, *running, axis=axis)
    results = [y, saved.mean, saved.inv_std, *running, *rv.batch_norm_backward(dy, x, saved, weight)]
    y, saved = rv.batch_norm(x, weight, bias, *running, axis=axis, training=False)
    results += [y, *rv.batch_norm_backward(dy, x, saved, weight)]
    for training in (True, False):
        y, saved = rv.batch_norm(x, weight, bias, *running, axis=axis, training=training, relu=True)
        results += [y, *rv.batch_norm_backward(dy, x, saved, weight)]
    y, saved = rv.layer_norm(x)
    return bits(*results, y, saved.mean, saved.inv_std, *rv.layer_norm_backward(dy, x, saved))


BIG = [((300, 130), 1), ((6, 8, 24, 31), 1), ((3, 2, 100, 100), 1), ((9000, 5), 1), ((2, 3, 5), 1)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), BIG)
def test_same_bits_for_any_thread_count_and_instruction_set(shape, axis, dtype):
    x, dy = random(shape, dtype, 1, mean=2), random(shape, dtype, 2)
    weight, bias = random(shape[axis], dtype, 3), random(shape[axis], dtype, 4)
    rv.set_num_threads(1)
    expected = everything(x, dy, axis, weight, bias)
    for level in LEVELS:
        _core.set_simd(level)
        for threads in range(1, 9):
            rv.set_num_threads(threads)
            assert everything(x, dy, axis, weight, bias) == expected


@pytest.mark.parametrize(("shape", "axis"), BIG)
def test_memory_layout_does_not_change_a_bit(shape, axis):
    x, dy = random(shape, np.float32, 1, mean=2), random(shape, np.float32, 2)
    weight, bias = random(shape[axis], np.float32, 3), random(shape[axis], np.float32, 4)
    expected = everything(x, dy, axis, weight, bias)
    doubled = np.repeat(x, 2, axis=0)[::2]
    assert (
        everything(doubled, np.asfortranarray(dy), axis, np.repeat(weight, 3)[::3], bias[::-1].copy()[::-1]) == expected
    )
    assert everything(np.asfortranarray(x), dy[::-1].copy()[::-1], axis, weight, bias) == expected


def test_a_disturbed_floating_point_environment_changes_nothing():
    x, dy = random((64, 3, 30, 30), np.float32, 1) * np.float32(1e-38), random((64, 3, 30, 30), np.float32, 2)
    weight, bias = random(3, np.float32, 3), random(3, np.float32, 4)
    for threads in (1, 4):
        rv.set_num_threads(threads)
        expected = everything(x, dy, 1, weight, bias)
        _core.disturb_environment(True)
        try:
            got = everything(x, dy, 1, weight, bias)
        finally:
            _core.disturb_environment(False)
        assert got == expected


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_relu_in_the_same_pass_has_the_bits_of_relu_after(shape, axis, dtype, affine, training):
    channels = shape[axis]
    x, dy = random(shape, dtype, 1), random(shape, dtype, 2)
    weight, bias = (random(channels, dtype, seed) if affine else None for seed in (3, 4))
    if affine:
        weight[0], bias[0] = 0, -0.0  # y is 0 or −0: cut off, and the derivative there is 0
    elif channels > 1:
        np.moveaxis(x, axis, 0)[-1].flat[0] = np.nan
    running = [[random(channels, dtype, 5), np.abs(random(channels, dtype, 6))] for _ in range(2)]
    if training and x.size == channels:
        pytest.skip("one element a channel")
    options = {"axis": axis, "training": training}
    plain, saved = rv.batch_norm(x, weight, bias, *running[0], **options)
    y, rectified = rv.batch_norm(x, weight, bias, *running[1], **options, relu=True)
    zero = dtype(0)
    assert bits(y, *running[1]) == bits(np.where((plain > 0) | np.isnan(plain), plain, zero), *running[0])
    got = rv.batch_norm_backward(dy, x, rectified, weight)
    expected = rv.batch_norm_backward(np.where(plain > 0, dy, zero), x, saved, weight)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        assert bits(np.nan_to_num(a)) == bits(np.nan_to_num(b))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), [((2, 3, 950, 950), 1), ((1800000, 3), 1), ((70, 3, 25601), 1)])
def test_what_is_larger_than_the_caches_is_written_everywhere_and_nowhere_else(shape, axis, dtype):
    x = random(shape, dtype)
    assert x.nbytes > 20 << 20
    around = np.full(x.size + 2, 7, dtype)
    out = around[1:-1].reshape(shape)
    _, saved = rv.batch_norm(x, axis=axis, out=out)
    rounded = saved.mean.astype(dtype)
    of_channel = [-1 if a == axis else 1 for a in range(x.ndim)]
    shift = ((rounded.astype(np.float64) - saved.mean) * saved.inv_std).astype(dtype)
    m, s, b = (numbers.reshape(of_channel) for numbers in (rounded, saved.inv_std.astype(dtype), shift))
    assert np.array_equal(out, (x - m) * s + b)
    assert (around[0], around[-1]) == (7, 7)


# ---------------------------------------------------------------------------------------------------------------------
# Hard numbers


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_constant_channels_give_the_bias_and_no_nan(axis, dtype):
    x = np.full((7, 3, 3), 0.1, dtype)
    bias = np.array([1, -2, 3], dtype)
    y, saved = rv.batch_norm(x, None, bias, axis=axis, eps=1e-5)
    if dtype is np.float32:
        assert (saved.inv_std == 1 / np.sqrt(1e-5)).all()
    np.testing.assert_allclose(
        np.moveaxis(y, axis, -1), np.broadcast_to(bias, (7, 3, 3)), atol=1e-13 if dtype is np.float64 else 0
    )
    dx, _, _ = rv.batch_norm_backward(x, x, saved)
    assert np.isfinite(dx).all()


@pytest.mark.parametrize(("shape", "axis"), [((4096, 3), 1), ((16, 3, 256), 1)])
def test_a_mean_far_above_the_deviation_loses_only_what_the_input_lost(shape, axis):
    x = random(shape, np.float32, 1, mean=1e4)
    y, saved = rv.batch_norm(x, axis=axis)
    expected, mean, _ = norms.batch_norm_training(x, np.ones(3), np.zeros(3), axis=axis)
    # The elements are exact numbers; half a unit at 10⁴, 5e-4, would be the error if the mean's rounding stayed.
    assert np.max(np.abs(y - expected)) < 2e-6
    np.testing.assert_allclose(saved.mean, mean, rtol=1e-15)
    dy = random(shape, np.float32, 2)
    dx, dweight, _ = rv.batch_norm_backward(dy, x, saved)
    edx, edweight, _ = norms.batch_norm_backward(dy, x, np.ones(3), axis=axis)
    assert np.max(np.abs(dx - edx)) < 2e-6
    np.testing.assert_allclose(dweight, edweight, rtol=1e-5)


def test_nan_stays_in_its_channel():
    x = random((8, 3, 10), np.float32)
    x[3, 1, 4] = np.nan
    y, _ = rv.batch_norm(x)
    assert np.isnan(y[:, 1]).all()
    assert np.isfinite(y[:, [0, 2]]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_running_statistics_follow_the_recurrence_with_the_unbiased_variance(dtype):
    mean, var = np.zeros(3, dtype), np.ones(3, dtype)
    expected = np.zeros(3), np.ones(3)
    for seed in range(20):
        x = random((6, 3, 2), dtype, seed, mean=seed)
        rv.batch_norm(x, None, None, mean, var, momentum=0.3)
        batch_mean, batch_var = norms.batch_statistics(x)
        expected = norms.update_running(*expected, batch_mean, batch_var, count=12, momentum=0.3)
    np.testing.assert_allclose(mean, expected[0], rtol=20 * np.finfo(dtype).eps)
    np.testing.assert_allclose(var, expected[1], rtol=20 * np.finfo(dtype).eps)


# ---------------------------------------------------------------------------------------------------------------------
# Every gradient, by central differences


def differences(loss, array, h=1e-5):
    gradient = np.empty(array.shape)
    for i in np.ndindex(array.shape):
        kept = array[i]
        array[i] = kept + h
        above = loss()
        array[i] = kept - h
        gradient[i] = (above - loss()) / (2 * h)
        array[i] = kept
    return gradient


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("shape", "axis"), [((5, 3), 1), ((3, 2, 4), 1), ((2, 3, 2), -1)])
def test_batch_norm_gradients_are_the_differences(shape, axis, training):
    x, dy = random(shape, np.float64, 1, mean=1), random(shape, np.float64, 2)
    weight, bias, mean = (random(shape[axis], np.float64, seed) for seed in (3, 4, 5))
    var = np.abs(random(shape[axis], np.float64, 6)) + 0.5

    def loss():
        y, _ = rv.batch_norm(x, weight, bias, mean.copy(), var.copy(), axis=axis, training=training)
        return float((y * dy).sum())

    _, saved = rv.batch_norm(x, weight, bias, mean.copy(), var.copy(), axis=axis, training=training)
    for got, array in zip(rv.batch_norm_backward(dy, x, saved, weight), (x, weight, bias), strict=True):
        np.testing.assert_allclose(got, differences(loss, array), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("scalar", [True, False])
@pytest.mark.parametrize(("shape", "axes"), [((4, 5), 1), ((2, 3, 2), 2)])
def test_layer_norm_gradients_are_the_differences(shape, axes, scalar):
    x, dy = random(shape, np.float64, 1, mean=1), random(shape, np.float64, 2)
    units = () if scalar else shape[-axes:]
    weight, bias = np.array(random(units, np.float64, 3)), np.array(random(units, np.float64, 4))

    def loss():
        return float((rv.layer_norm(x, weight, bias, axes=axes)[0] * dy).sum())

    _, saved = rv.layer_norm(x, weight, bias, axes=axes)
    for got, array in zip(rv.layer_norm_backward(dy, x, saved, weight, bias), (x, weight, bias), strict=True):
        np.testing.assert_allclose(got, differences(loss, array), rtol=1e-6, atol=1e-8)


# ---------------------------------------------------------------------------------------------------------------------
# Arrays: out, empty, wrong


def test_results_go_to_out():
    x, dy = random((4, 3, 5), np.float32, 1), random((4, 3, 5), np.float32, 2)
    for forward, backward in [(rv.batch_norm, rv.batch_norm_backward), (rv.layer_norm, rv.layer_norm_backward)]:
        out, dx = np.empty_like(x), np.empty_like(x)
        y, saved = forward(x, out=out)
        assert y is out
        assert bits(out) == bits(forward(x)[0])
        assert backward(dy, x, saved, out=dx)[0] is dx
        assert bits(dx) == bits(backward(dy, x, saved)[0])


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0, 3, 5), (4, 3, 0), (4, 0, 5)])
def test_empty_arrays(shape):
    x = np.empty(shape, np.float32)
    channels = shape[1]
    running = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    y, saved = rv.batch_norm(x, None, None, *running, training=False)
    assert y.shape == shape
    dx, dweight, dbias = rv.batch_norm_backward(x, x, saved)
    assert (dx.shape, dweight.shape, dbias.shape) == (shape, (channels,), (channels,))
    assert not dweight.any()
    assert not dbias.any()
    if channels:
        with pytest.raises(ValueError, match="at least 2 elements per channel in training, got 0"):
            rv.batch_norm(x, None, None, *running)
    else:
        assert rv.batch_norm(x)[0].shape == shape
    y, saved = rv.layer_norm(x)
    assert y.shape == shape
    assert rv.layer_norm_backward(x, x, saved)[1].shape == shape[-1:]


X = np.arange(12, dtype=np.float32).reshape(4, 3) ** 2
X2 = np.ones((3, 3), np.float32)
READ_ONLY = np.empty_like(X)
READ_ONLY.flags.writeable = False
F32 = np.float32

BAD_FORWARD = [
    ({"x": [[1.0, 2.0]]}, TypeError, r"x: expected a NumPy array, got list; pass np.asarray"),
    ({"x": X.astype(np.int64)}, TypeError, r"x: expected float64, float32.*got int64"),
    ({"x": X.astype(np.float16)}, TypeError, r"x: expected float32 or float64, got float16; convert it with x.astype"),
    ({"x": X.astype(">f4")}, TypeError, r"x: expected native byte order"),
    (
        {"x": X[:1]},
        ValueError,
        r"x: expected at least 2 elements per channel in training, got 1 \(shape \(1, 3\), axis 1\)",
    ),
    ({"axis": 2}, ValueError, r"axis: expected -2 to 1, one of the axes of x, shape \(4, 3\), got 2"),
    ({"axis": -3}, ValueError, r"axis: expected -2 to 1"),
    ({"weight": np.ones(4, F32)}, ValueError, r"weight: expected shape \(3,\), got \(4,\)"),
    ({"weight": np.ones((1, 3), F32)}, ValueError, r"weight: expected shape \(3,\), got \(1, 3\)"),
    ({"weight": np.ones(1, F32)}, ValueError, r"weight: expected shape \(3,\), got \(1,\)"),
    ({"weight": 2.0}, TypeError, r"weight: expected a NumPy array, got float"),
    (
        {"bias": np.ones(3)},
        TypeError,
        r"bias: expected float32 like x, got float64; convert it with bias.astype\(np.float32\)",
    ),
    ({"running_mean": np.ones(3)}, TypeError, r"running_mean: expected float32 like x, got float64"),
    (
        {"running_var": None},
        ValueError,
        r"running_var: expected an array like running_mean, got None; pass both or neither",
    ),
    ({"running_mean": None}, ValueError, r"running_mean: expected an array like running_var, got None"),
    ({"running_mean": np.broadcast_to(F32(0), 3)}, ValueError, r"running_mean: the array is read-only"),
    (
        {"running_mean": None, "running_var": None, "training": False},
        ValueError,
        r"running_mean, running_var: expected arrays for training=False",
    ),
    ({"eps": -1.0}, ValueError, r"eps: expected a finite number ≥ 0, got -1.0"),
    ({"eps": float("nan")}, ValueError, r"eps: expected a finite number ≥ 0, got NaN"),
    ({"momentum": 1.5}, ValueError, r"momentum: expected a number in \[0, 1\], got 1.5"),
    ({"out": np.empty((3, 4), F32)}, ValueError, r"out: expected shape \(4, 3\) like x, got \(3, 4\)"),
    ({"out": np.empty((4, 3))}, TypeError, r"out: expected float32 like x, got float64"),
    ({"out": np.empty((3, 4), F32).T}, ValueError, r"out: expected a C-contiguous array, got strides"),
    ({"out": READ_ONLY}, ValueError, r"out: the array is read-only"),
    ({"out": X}, ValueError, r"out: shares memory with x, .* pass a new array"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_FORWARD)
def test_what_batch_norm_refuses_it_leaves_alone(change, error, message):
    arguments = {
        "x": X,
        "weight": np.ones(3, F32),
        "bias": np.ones(3, F32),
        "running_mean": np.zeros(3, F32),
        "running_var": np.ones(3, F32),
        "out": np.zeros_like(X),
    }
    if "x" in change:
        arguments["out"] = None
    arguments |= change
    arrays = [a for a in arguments.values() if isinstance(a, np.ndarray)]
    before = bits(*arrays)
    with pytest.raises(error, match=message):
        rv.batch_norm(**arguments)
    assert bits(*arrays) == before


def test_running_statistics_may_not_lie_in_x_or_in_each_other():
    both = np.ones(5, F32)
    with pytest.raises(ValueError, match="running_var: shares memory with running_mean"):
        rv.batch_norm(X, None, None, both[:3], both[2:])
    with pytest.raises(ValueError, match="running_var: shares memory with x"):
        rv.batch_norm(X, None, None, both[:3], X[0])
    with pytest.raises(ValueError, match="running_mean: shares memory with weight"):
        rv.batch_norm(X, both[:3], None, both[:3], np.ones(3, F32))
    with pytest.raises(ValueError, match="out: shares memory with bias"):
        rv.batch_norm(X[:3], None, X2[0], out=X2)


BAD_BACKWARD = [
    ({"dy": X.tolist()}, TypeError, r"dy: expected a NumPy array, got list"),
    ({"dy": X.astype(np.float64)}, TypeError, r"dy: expected float32 like x, got float64"),
    ({"dy": X[:2]}, ValueError, r"dy: expected shape \(4, 3\) like x, got \(2, 3\)"),
    ({"x": X.tolist()}, TypeError, r"x: expected a NumPy array, got list"),
    ({"weight": np.ones(2, F32)}, ValueError, r"weight: expected shape \(3,\), got \(2,\)"),
    ({"out": X}, ValueError, r"out: shares memory with (x|dy)"),
    ({"out": np.zeros((4, 3))}, TypeError, r"out: expected float32 like x, got float64"),
    (
        {"x": X[:, :2].copy(), "dy": X[:, :2].copy(), "weight": None},
        ValueError,
        r"saved.mean: expected float64 of shape \(2,\)",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_BACKWARD)
def test_what_batch_norm_backward_refuses_it_leaves_alone(change, error, message):
    _, saved = rv.batch_norm(X)
    arguments = {"dy": X, "x": X, "saved": saved, "weight": np.ones(3, F32)} | change
    before = bits(X)
    with pytest.raises(error, match=message):
        rv.batch_norm_backward(**arguments)
    assert bits(X) == before


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"axes": 0}, ValueError, r"axes: expected how many trailing axes .* at least 1, got 0"),
        ({"axes": 3}, ValueError, r"axes: expected 1 to 2, the axes of x, shape \(4, 3\), got 3"),
        ({"weight": np.ones(4, F32)}, ValueError, r"weight: expected shape \(3,\), got \(4,\)"),
        ({"bias": np.ones(())}, TypeError, r"bias: expected float32 like x, got float64"),
        ({"eps": -1.0}, ValueError, r"eps: expected a finite number ≥ 0, got -1.0"),
        ({"out": X}, ValueError, r"out: shares memory with x"),
        ({"x": X.astype(int)}, TypeError, r"x: expected float64, float32"),
    ],
)
def test_what_layer_norm_refuses(change, error, message):
    before = bits(X)
    with pytest.raises(error, match=message):
        rv.layer_norm(**({"x": X} | change))
    assert bits(X) == before


# ---------------------------------------------------------------------------------------------------------------------
# The layers


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_layer_is_the_functions_with_memory(affine):
    layer = rv.BatchNorm(3, affine=affine, momentum=0.2)
    assert set(layer.grads.values()) <= {None}
    mean, var = np.zeros(3, F32), np.ones(3, F32)
    for name in layer.params:
        layer.params[name][...] = random(3, F32, 7)
    weight, bias = layer.params.get("weight"), layer.params.get("bias")
    places, grads = [], []
    for seed in range(3):
        x, dy = random((4, 3, 5), F32, seed), random((4, 3, 5), F32, seed + 10)
        y, saved = rv.batch_norm(x, weight, bias, mean, var, momentum=0.2)
        assert bits(layer(x), *layer.buffers.values()) == bits(y, mean, var)
        dx, dweight, dbias = rv.batch_norm_backward(dy, x, saved, weight)
        assert bits(layer.backward(dy)) == bits(dx)
        if affine:
            assert bits(layer.grads["weight"], layer.grads["bias"]) == bits(dweight, dbias)
        places.append([layer(x).ctypes.data, layer.backward(dy).ctypes.data])
        mean[...], var[...] = layer.buffers.values()
        grads.append(list(layer.grads.values()))
    assert places[0] == places[1] == places[2], "nobody holds a result: it is written again"
    assert all(a is b for one, other in itertools.pairwise(grads) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("affine", [True, False])
def test_a_layer_with_relu_is_the_layer_and_relu(affine):
    one = rv.BatchNorm(3, affine=affine, relu=True)
    two, relu = rv.BatchNorm(3, affine=affine), rv.nn.ReLU()
    for name in one.params:
        one.params[name][...] = two.params[name][...] = random(3, F32, 7)
    for seed, training in enumerate((True, True, False)):
        x, dy = random((4, 3, 5), F32, seed), random((4, 3, 5), F32, seed + 10)
        assert bits(one(x, training), *one.buffers.values()) == bits(relu(two(x, training)), *two.buffers.values())
        assert bits(one.backward(dy), *one.grads.values()) == bits(two.backward(relu.backward(dy)), *two.grads.values())
    assert repr(one) == repr(two)[:-1] + ", relu=True)"


def test_a_layer_that_was_pickled_before_there_was_relu_has_none():
    layer, x = rv.BatchNorm(3), random((4, 3), F32)
    y, saved = layer(x).copy(), rv.batch_norm(x)[1]
    del layer.__dict__["relu"], saved.__dict__["relu"], saved.__dict__["bias"]
    old, kept = pickle.loads(pickle.dumps(layer)), pickle.loads(pickle.dumps(saved))
    assert bits(old(x)) == bits(y)
    assert bits(*rv.batch_norm_backward(x, x, kept)) == bits(*rv.batch_norm_backward(x, x, rv.batch_norm(x)[1]))


def test_layers_keep_working_when_fed_their_own_results():
    layer = rv.BatchNorm(3, axis=-1)
    x = random((8, 3), F32)
    once = layer(x)
    kept = once.copy()
    assert layer(once) is not once
    assert bits(once) == bits(kept)
    dx = layer.backward(x)
    assert layer.backward(dx) is not dx


@pytest.mark.parametrize("scalar", [True, False])
def test_layer_norm_layer_is_the_functions_with_memory(scalar):
    layer = rv.LayerNorm((3, 5), scalar=scalar)
    x, dy = random((4, 3, 5), F32, 1), random((4, 3, 5), F32, 2)
    weight, bias = layer.params["weight"], layer.params["bias"]
    weight[...], bias[...] = 2.0, 0.5
    y, saved = rv.layer_norm(x, weight, bias, axes=2)
    assert bits(layer(x)) == bits(y)
    dx, dweight, dbias = rv.layer_norm_backward(dy, x, saved, weight, bias)
    assert bits(layer.backward(dy), *layer.grads.values()) == bits(dx, dweight, dbias)
    assert layer.grads["weight"].shape == (() if scalar else (3, 5))


def test_layers_fit_into_a_network_that_learns():
    rng = np.random.default_rng(0)
    net = rv.nn.Sequential(
        rv.nn.Linear(4, 8, rng),
        rv.BatchNorm(8),
        rv.nn.ReLU(),
        rv.nn.Linear(8, 8, rng),
        rv.LayerNorm(8),
        rv.nn.Linear(8, 1, rng),
    )
    x = rng.standard_normal((64, 4), dtype=np.float32)
    t = np.sin(x.sum(axis=1, keepdims=True))
    opt = rv.Adam(net.params, lr=0.02)
    losses = []
    for _ in range(60):
        loss, dy = rv.nn.mean_squared_error(net(x), t)
        net.backward(dy)
        opt.step(net.grads)
        losses.append(loss)
    assert losses[-1] < 0.2 * losses[0]
    assert net.forward(x[:1], training=False).shape == (1, 1)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: rv.BatchNorm(0), ValueError, "n_features: expected at least 1, got 0"),
        (lambda: rv.BatchNorm(3, eps=-1), ValueError, "eps: expected a finite number ≥ 0, got -1"),
        (lambda: rv.BatchNorm(3, momentum=2), ValueError, r"momentum: expected a number in \[0, 1\], got 2"),
        (lambda: rv.BatchNorm(3, dtype=int), TypeError, "dtype: expected float32 or float64, got int64"),
        (lambda: rv.BatchNorm(3).backward(X), RuntimeError, "call forward first"),
        (lambda: rv.BatchNorm(5.5), TypeError, "n_features: expected an integer, got 5.5"),
        (lambda: rv.BatchNorm(5)(np.ones((2, 4), F32)), ValueError, "x: expected 5 channels along axis 1, .* got 4"),
        (lambda: rv.BatchNorm(4)(X), ValueError, r"x: expected 4 channels .* got 3 in shape \(4, 3\)"),
        (lambda: rv.BatchNorm(4, affine=False, axis=-1)(X), ValueError, "x: expected 4 channels along axis -1"),
        (lambda: rv.LayerNorm((2, 2.5)), TypeError, r"shape: expected an integer or .* got \(2, 2.5\)"),
        (lambda: rv.LayerNorm(()), ValueError, "shape: expected the length of one axis or more"),
        (lambda: rv.LayerNorm(3, affine=False, scalar=True), ValueError, "scalar: expected False"),
        (lambda: rv.LayerNorm(4)(X), ValueError, r"x: expected shape \(\.\.\., 4\), got \(4, 3\)"),
        (lambda: rv.LayerNorm(3).backward(X), RuntimeError, "call forward first"),
    ],
)
def test_what_the_layers_refuse(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_several_threads_of_python_may_normalise_at_once():
    x = random((16, 8, 40, 40), F32)
    expected = bits(*rv.batch_norm(x)[:1])
    wrong = []

    def work():
        wrong.extend(n for n in range(5) if bits(*rv.batch_norm(x)[:1]) != expected)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


LAYERS = {
    "batch norm": ((6, 5), lambda: rv.BatchNorm(5, dtype=np.float64)),
    "batch norm of images": ((4, 3, 2, 3), lambda: rv.BatchNorm(3, dtype=np.float64)),
    "batch norm, channels last": ((4, 2, 3, 5), lambda: rv.BatchNorm(5, axis=-1, dtype=np.float64)),
    "batch norm without affine": ((7, 4), lambda: rv.BatchNorm(4, affine=False, dtype=np.float64)),
    "batch norm with relu": ((5, 3, 4), lambda: rv.BatchNorm(3, relu=True, dtype=np.float64)),
    "layer norm": ((4, 6), lambda: rv.LayerNorm(6, dtype=np.float64)),
    "layer norm with scalars": ((4, 6), lambda: rv.LayerNorm(6, scalar=True, dtype=np.float64)),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_every_backward_passes_check_gradient(name, training):
    shape, make = LAYERS[name]
    rng = np.random.default_rng(5)
    layer, x, weights = make(), rng.standard_normal(shape), rng.standard_normal(shape)
    for p in layer.params.values():
        p[...] += rng.standard_normal(p.shape) / 2
    if hasattr(layer, "buffers"):
        layer.forward(3 * x + 1)  # running statistics other than 0 and 1
        layer.backward(x)  # an evaluation leaves what waits for its backward alone

    def loss_and_grads(params):
        # Quadratic in y, so that the loss is not linear in weight and bias.
        y = layer.forward(params["x"], training=training)
        dx = layer.backward(weights * y)
        return 0.5 * (weights * y * y).sum(), {"x": dx.copy(), "own": layer.grads}

    result = rv.check_gradient(loss_and_grads, {"x": x, "own": layer.params})
    assert result, result.message


@pytest.mark.parametrize("name", ["eps", "momentum"])
def test_layers_and_functions_refuse_a_number_in_the_same_words(name):
    with pytest.raises(ValueError, match=name) as of_layer:
        rv.BatchNorm(2, **{name: -1.5})
    with pytest.raises(ValueError, match=name) as of_function:
        rv.batch_norm(np.ones((3, 2)), **{name: -1.5})
    assert str(of_layer.value) == str(of_function.value)
