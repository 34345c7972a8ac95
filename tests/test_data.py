"""Minibatches cover the samples as promised; Standardize keeps the training statistics."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ravine import data

LENGTHS = st.integers(1, 30)


@given(n=LENGTHS, size=LENGTHS, shuffle=st.booleans())
def test_one_pass_holds_every_sample_once_with_its_label(n, size, shuffle):
    x, y = np.arange(2 * n).reshape(n, 2), np.arange(n)
    batches = list(data.minibatches(x, y, batch_size=size, rng=np.random.default_rng(n) if shuffle else None))
    assert [len(yb) for _, yb in batches] == [size] * (n // size) + ([n % size] if n % size else [])
    assert sorted(np.concatenate([yb for _, yb in batches])) == list(range(n))
    for xb, yb in batches:
        assert np.array_equal(xb, x[yb])


@given(n=LENGTHS, size=LENGTHS)
def test_drop_last_leaves_only_full_batches(n, size):
    if size > n:
        with pytest.raises(ValueError, match=f"drop_last leaves no batch of {size} out of {n} samples"):
            data.minibatches(np.arange(n), batch_size=size, drop_last=True)
        return
    batches = list(data.minibatches(np.arange(n), batch_size=size, drop_last=True, rng=np.random.default_rng(0)))
    assert [len(b) for (b,) in batches] == [size] * (n // size)


def test_without_rng_the_order_stays_and_batches_are_views():
    x = np.arange(7)
    batches = [b for (b,) in data.minibatches(x, batch_size=3)]
    assert np.concatenate(batches).tolist() == list(range(7))
    assert all(np.shares_memory(b, x) for b in batches)


def test_each_epoch_has_another_order_and_the_seed_repeats_it():
    def epochs(seed):
        rng = np.random.default_rng(seed)
        return [np.concatenate([b for (b,) in data.minibatches(np.arange(50), batch_size=8, rng=rng)]) for _ in "12"]

    first, second = epochs(0)
    assert not np.array_equal(first, second)
    assert np.array_equal([first, second], epochs(0))


@pytest.mark.parametrize("replace", [False, True])
def test_variance_of_a_batch_mean(replace):
    """σ²/S with replacement, σ²/S·(N−S)/(N−1) without; the first batch of each of many passes is independent."""
    n, size, passes = 10, 5, 4000
    g, rng = np.arange(n) ** 2.0, np.random.default_rng(0)
    means = [next(data.minibatches(g, batch_size=size, rng=rng, replace=replace))[0].mean() for _ in range(passes)]
    expected = g.var() / size * (1 if replace else (n - size) / (n - 1))
    assert np.mean(means) == pytest.approx(g.mean(), abs=5 * math.sqrt(expected / passes))
    assert np.var(means) == pytest.approx(expected, rel=5 * math.sqrt(2 / passes))


def test_replacement_draws_as_many_samples_and_repeats_some():
    drawn = [b for (b,) in data.minibatches(np.arange(100), batch_size=30, rng=np.random.default_rng(0), replace=True)]
    assert [len(b) for b in drawn] == [30, 30, 30, 10]
    assert 50 < len(set(np.concatenate(drawn).tolist())) < 75  # 63.4 on average


def test_a_generator_without_permutation_shuffles_too():
    class Few:
        def __init__(self):
            self.random = np.random.default_rng(0).random

    (b,) = next(data.minibatches(np.arange(20), batch_size=20, rng=Few()))
    assert sorted(b) == list(range(20))
    assert b.tolist() != list(range(20))


@pytest.mark.parametrize(
    "given_arrays, options, error, words",
    [
        ((np.ones(3), np.ones(4)), {"batch_size": 2}, ValueError, r"same number of samples in each, got \[3, 4\]"),
        ((np.ones(3),), {"batch_size": 0}, ValueError, "batch_size: expected an integer >= 1, got 0"),
        ((np.ones(3),), {"batch_size": 1.5}, TypeError, "float"),
        ((), {"batch_size": 1}, TypeError, "expected at least one array"),
        (([1, 2],), {"batch_size": 1}, TypeError, r"arrays\[0\]: expected an array .* got list"),
        ((np.ones(()),), {"batch_size": 1}, TypeError, r"arrays\[0\]: expected an array"),
        ((np.ones((0, 2)),), {"batch_size": 1}, ValueError, "at least one sample, got none"),
        ((np.ones(3),), {"batch_size": 1, "replace": True}, ValueError, "rng: replace=True"),
    ],
)
def test_wrong_arguments_are_named_at_the_call(given_arrays, options, error, words):
    with pytest.raises(error, match=words):
        data.minibatches(*given_arrays, **options)  # before the first batch is asked for


SAMPLES = arrays.arrays(np.float64, st.tuples(st.integers(1, 8), st.integers(1, 4)), elements=st.floats(-1e6, 1e6))


@given(x=SAMPLES)
def test_standardized_features_have_mean_zero_and_variance_one_or_are_zero(x):
    z = data.Standardize().fit_transform(x)
    for column, out in zip(x.T, z.T, strict=True):
        if len(set(column.tolist())) == 1:
            assert (out == 0).all()
        elif column.std() > 1e-9 * abs(column).max() and column.std() > 1e-150:
            assert out.mean() == pytest.approx(0, abs=1e-6)
            assert out.std() == pytest.approx(1, rel=1e-6)


@given(x=SAMPLES)
def test_inverse_undoes_transform(x):
    s = data.Standardize().fit(x)
    assert np.allclose(s.inverse(s.transform(x)), x, rtol=1e-12, atol=1e-9)


def test_statistics_by_hand_are_kept_for_test_time():
    s = data.Standardize().fit(np.array([[1.0, 10.0], [3.0, 10.0], [5.0, 10.0]]))
    assert s.mean.tolist() == [3, 10]
    assert np.allclose(s.scale, [math.sqrt(8 / 3), 1])
    assert np.allclose(s.transform(np.array([[7.0, 12.0]])), [[4 / math.sqrt(8 / 3), 2]])


def test_constant_feature_whose_mean_rounds():
    x = np.full((49, 1), 0.1)
    assert (data.Standardize().fit_transform(x) == 0).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtype_is_kept_and_statistics_are_float64(dtype):
    x = (1000 + np.random.default_rng(0).standard_normal((500, 2))).astype(dtype)
    s = data.Standardize().fit(x)
    assert s.mean.dtype == s.scale.dtype == np.float64
    assert np.array_equal(s.mean, x.astype(np.float64).mean(axis=0))
    assert s.transform(x).dtype == s.inverse(x).dtype == dtype


def test_bfloat16():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.array([[1.0], [3.0]]).astype(ml_dtypes.bfloat16)
    assert data.Standardize().fit_transform(x).tolist() == [[-1.0], [1.0]]


def test_images_are_standardized_per_pixel():
    x = np.random.default_rng(0).random((20, 4, 3))
    s = data.Standardize().fit(x)
    assert s.mean.shape == (4, 3)
    assert np.allclose(s.transform(x).std(axis=0), 1)


FITTED = data.Standardize().fit(np.ones((2, 3)))


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: data.Standardize().transform(np.ones((2, 3))), RuntimeError, "fit it to the training data first"),
        (lambda: data.Standardize().inverse(np.ones((2, 3))), RuntimeError, "fit it to the training data first"),
        (lambda: data.Standardize().fit(np.ones((2, 3), np.uint8)), TypeError, "expected a floating array, got uint8"),
        (lambda: data.Standardize().fit([[1.0]]), TypeError, "expected a floating array, got list"),
        (lambda: data.Standardize().fit(np.ones((0, 3))), ValueError, r"at least one sample along axis 0, got shape"),
        (lambda: data.Standardize().fit(np.array([[1.0], [math.nan]])), ValueError, "expected finite values"),
        (lambda: FITTED.transform(np.ones((2, 4))), ValueError, r"samples of shape \(3,\) as in fit, got \(4,\)"),
    ],
)
def test_wrong_arguments_of_standardize_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
