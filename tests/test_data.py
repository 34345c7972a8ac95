"""Minibatches cover the samples as promised; Standardize keeps the training statistics."""

import math
import pickle

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


# Each iter is an epoch


def orders(batches, epochs=1):
    return [np.concatenate([b for (b,) in batches]).tolist() for _ in range(epochs)]


@pytest.mark.parametrize("replace", [False, True])
def test_each_iter_is_an_epoch_with_the_orders_of_calls(replace):
    def rng():
        return np.random.default_rng(5)

    one, other, x = rng(), rng(), np.arange(23)
    options = {"batch_size": 4, "replace": replace}
    once = data.minibatches(x, rng=one, **options)
    again = [orders(data.minibatches(x, rng=other, **options))[0] for _ in range(3)]
    assert orders(once, 3) == again
    draw = rng()
    assert again[0] == (draw.integers(0, 23, 23) if replace else draw.permutation(23)).tolist()
    assert len(once) == 6


def test_an_order_is_drawn_at_the_call():
    rng = np.random.default_rng(0)
    first, second = (data.minibatches(np.arange(20), batch_size=3, rng=rng) for _ in "12")
    drawn = np.random.default_rng(0)
    expected = [drawn.permutation(20).tolist() for _ in "12"]
    assert [orders(second)[0], orders(first)[0]] == expected[::-1]


def test_next_goes_on_with_the_epoch_at_hand():
    batches = data.minibatches(np.arange(7), batch_size=3)
    assert next(batches)[0].tolist() == [0, 1, 2]
    assert [b.tolist() for (b,) in batches] == [[3, 4, 5], [6]]  # the rest, as of an iterator
    with pytest.raises(StopIteration):
        next(batches)
    assert [b.tolist() for (b,) in batches] == [[0, 1, 2], [3, 4, 5], [6]]


def test_an_iterator_is_its_own_and_epochs_do_not_disturb_each_other():
    batches = data.minibatches(np.arange(6), batch_size=2, rng=3)
    first = iter(batches)
    head = next(first)[0]
    inner = orders(batches)[0]
    rest = [b for (b,) in first]
    drawn = np.random.default_rng(3)
    assert [np.concatenate([head, *rest]).tolist(), inner] == [drawn.permutation(6).tolist() for _ in "12"]


@pytest.mark.parametrize("drop_last", [False, True])
@given(n=LENGTHS, size=LENGTHS)
def test_the_length_is_that_of_an_epoch(drop_last, n, size):
    if drop_last and size > n:
        return
    batches = data.minibatches(np.arange(n), batch_size=size, drop_last=drop_last)
    assert len(batches) == len(list(batches)) == len(list(batches))


def test_a_seed_stands_for_its_generator():
    x = np.arange(30)
    for seed in (0, np.int64(7)):
        with_seed, given_one = (data.minibatches(x, batch_size=7, rng=r) for r in (seed, np.random.default_rng(seed)))
        assert orders(with_seed, 3) == orders(given_one, 3)
    with pytest.raises(ValueError, match="rng: expected a seed >= 0, got -1"):
        data.minibatches(x, batch_size=7, rng=-1)
    with pytest.raises(TypeError, match="rng: expected a Generator, a seed or None, got str"):
        data.minibatches(x, batch_size=7, rng="0")


# Where it is, saved and loaded


GENERATORS = [np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64]


def generator(kind, seed):
    rng = np.random.Generator(kind(seed))
    rng.random(3), rng.integers(0, 5, 3, np.uint32)  # in the middle of its buffers
    return rng


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("given_out", [0, 1, 4, 6, 8, 13])
def test_a_loop_that_was_killed_goes_on_bit_for_bit(kind, replace, given_out):
    """In the middle of an epoch, at its ends, and in a later one; the loop draws from the same generator, too."""
    x, options = np.arange(23), {"batch_size": 4, "replace": replace}

    def run(batches, rng, epoch, step, until):
        seen = []
        for _ in range(epoch, 3):
            for (b,) in batches:
                if step == until:
                    return seen, epoch, step, None
                seen.append((b.tolist(), rng.random()))
                step += 1
                if step == until:
                    return seen, epoch, step, (batches.state_dict(), pickle.dumps(rng.bit_generator.state))
            epoch += 1
        return seen, epoch, step, None

    rng = generator(kind, 1)
    whole = run(data.minibatches(x, rng=rng, **options), rng, 0, 0, None)[0]
    rng = generator(kind, 1)
    batches = data.minibatches(x, rng=rng, **options)
    if given_out == 0:
        head, epoch, step, saved = [], 0, 0, (batches.state_dict(), pickle.dumps(rng.bit_generator.state))
    else:
        head, epoch, step, saved = run(batches, rng, 0, 0, given_out)
    state = pickle.loads(pickle.dumps(saved[0]))
    del rng, batches
    rng = generator(kind, 99)
    batches = data.minibatches(x, rng=rng, **options)
    rng.bit_generator.state = pickle.loads(saved[1])
    before = pickle.dumps(rng.bit_generator.state)
    batches.load_state_dict(state)
    assert pickle.dumps(rng.bit_generator.state) == before, "the generator is its owner's"
    np.testing.assert_equal(batches.state_dict(), state)
    assert head + run(batches, rng, epoch, step, None)[0] == whole


@pytest.mark.parametrize("given_out", [0, 3, 6, 9])
def test_a_seeded_loop_needs_no_other_state(given_out):
    x = np.arange(23)
    whole = data.minibatches(x, batch_size=4, rng=8)
    expected = [b.tolist() for _ in range(3) for (b,) in whole]
    batches, head = data.minibatches(x, batch_size=4, rng=8), []
    epochs = iter(b for _ in range(3) for (b,) in batches)
    head = [next(epochs).tolist() for _ in range(given_out)]
    resumed = data.minibatches(x, batch_size=4, rng=123)
    resumed.load_state_dict(batches.state_dict())
    left = 3 - given_out // 6 if given_out % 6 or not given_out else 4 - given_out // 6
    assert head + [b.tolist() for _ in range(left) for (b,) in resumed] == expected


def test_an_epoch_that_ended_is_followed_by_a_new_one():
    batches, other = (data.minibatches(np.arange(6), batch_size=2, rng=seed) for seed in (0, 1))
    list(batches)
    other.load_state_dict(batches.state_dict())
    assert orders(other) == orders(batches)


def test_the_state_is_plain_and_its_own():
    batches = data.minibatches(np.arange(6), batch_size=2, rng=0)
    state = batches.state_dict()
    kinds = {type(value) for value in [*state.values(), *state["generator"].values()]}
    assert kinds <= {int, bool, str, dict}
    copy = pickle.dumps(state)
    next(batches)
    assert pickle.dumps(state) == copy
    assert data.minibatches(np.arange(6), batch_size=4).state_dict() == {
        "format": 1, "position": 0, "finished": False, "samples": 6, "batch_size": 4, "batches": 2, "replace": False,
    }  # fmt: skip


def test_a_generator_that_shows_no_state_is_replaced_by_the_order():
    class Few:
        def __init__(self, seed):
            self.random = np.random.default_rng(seed).random

    one, other = (data.minibatches(np.arange(9), batch_size=2, rng=Few(seed)) for seed in (0, 1))
    next(one)
    other.load_state_dict(one.state_dict())
    assert orders(other) == orders(one)


STATE = data.minibatches(np.arange(6), batch_size=2, rng=0).state_dict()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"format": 2}, "expected what state_dict.. returned, format 1, got 2"),
        ({"samples": 7, "batch_size": 3}, "samples: expected 6 as here, got 7; batch_size: expected 2 as here, got 3"),
        ({"replace": True}, "replace: expected False as here, got True"),
        ({"position": 4}, "position: expected a count up to 3, got 4"),
        ({"position": None}, "position: expected a count up to 3, got None"),
        ({"generator": {"bit_generator": "LCG"}}, r"state\['generator'\]: .* no bit generator is called 'LCG'"),
        ({"generator": {"bit_generator": "PCG64"}}, r"state\['generator'\]: expected a generator's state"),
        ({"generator": 3}, r"state\['generator'\]: expected a generator's state"),
        ({"generator": None}, "expected the order of a generator"),
        ({"generator": None, "order": np.arange(5)}, r"state\['order'\]: expected 6 places of samples"),
        ({"generator": None, "order": np.full(6, 6)}, r"state\['order'\]: expected 6 places of samples"),
    ],
)
def test_what_cannot_be_loaded_changes_nothing(change, words):
    batches = data.minibatches(np.arange(6), batch_size=2, rng=4)
    next(batches)
    before = batches.state_dict()
    with pytest.raises(ValueError, match=words):
        batches.load_state_dict({**STATE, **change})
    assert batches.state_dict() == before
    with pytest.raises(ValueError, match="expected no order, as rng=None says here"):
        data.minibatches(np.arange(6), batch_size=2).load_state_dict(STATE)


# What is no array of NumPy


class Rows:
    def __init__(self, values, labels):
        self.values, self.labels = values, np.array(labels)

    def __getitem__(self, rows):
        return Labelled(self.values[rows], self.labels[rows])


class Labelled:
    """Indexed as pandas' series and frames are: by label for an array, by name of the column for a string."""

    def __init__(self, values, labels, by_position=True):
        self.values, self.labels, self.shape, self.loc = values, labels, values.shape, None
        if by_position:
            self.iloc = Rows(values, labels)

    def __len__(self):
        return len(self.values)

    def reset_index(self, drop):
        assert drop
        return Labelled(self.values, range(len(self.values)))

    def __getitem__(self, key):
        return self.values[[list(self.labels).index(k) for k in np.atleast_1d(np.arange(6)[key])]]


@pytest.mark.parametrize("rng", [None, 0])
@pytest.mark.parametrize("shape", [(6,), (6, 6)])
def test_rows_are_taken_by_position_whatever_their_labels(rng, shape):
    values = np.arange(math.prod(shape), dtype=float).reshape(shape)
    labelled, plain = Labelled(values, [5, 4, 3, 2, 1, 0]), np.arange(6.0)
    pairs = list(data.minibatches(labelled, plain, batch_size=4, rng=rng))
    assert all(np.array_equal(a.values, values[b.astype(int)]) for a, b in pairs)
    assert all(a.labels == range(len(b)) for a, b in pairs)
    assert sorted(np.concatenate([b for _, b in pairs])) == plain.tolist()
    with pytest.raises(TypeError, match=r"arrays\[1\]: Labelled has rows by label \(loc\) but none by position"):
        data.minibatches(plain, Labelled(values, range(6), by_position=False), batch_size=4)


def test_pandas():
    pd = pytest.importorskip("pandas")
    plain = np.arange(6.0)
    series = pd.Series(plain, index=[5, 4, 3, 2, 1, 0])
    frame = pd.DataFrame({0: plain, 1: -plain, 2: plain, 3: plain, 4: plain, 5: plain}, index=series.index)
    for a, b, c in data.minibatches(series, frame, plain, batch_size=4, rng=0):
        assert a.to_numpy().tolist() == b[0].tolist() == (-b[1]).tolist() == c.tolist()
        assert b.shape == (len(c), 6)
        assert (a - c).abs().max() == (a - b[0]).abs().max() == 0


@pytest.mark.parametrize(
    "form", ["csr_matrix", "csr_array", "csc_array", "coo_array", "lil_array", "bsr_array", "dia_array"]
)
def test_rows_of_sparse_matrices(form):
    sparse = pytest.importorskip("scipy.sparse")
    dense = np.diag(np.arange(1.0, 7)) + np.eye(6, k=1)
    pairs = list(data.minibatches(getattr(sparse, form)(dense), np.arange(6), batch_size=4, rng=0))
    assert [len(b) for _, b in pairs] == [4, 2]
    assert all(np.array_equal(a.toarray(), dense[b]) for a, b in pairs)


def test_rows_of_a_memory_map_and_of_a_masked_array(tmp_path):
    x = np.arange(12.0).reshape(6, 2)
    np.save(tmp_path / "x.npy", x)
    mapped, masked = np.load(tmp_path / "x.npy", mmap_mode="r"), np.ma.masked_greater(x, 5)
    for a, b, c in data.minibatches(mapped, masked, x, batch_size=4, rng=0):
        assert np.array_equal(a, c)
        assert np.array_equal(b.mask, c > 5)


@pytest.mark.parametrize("wrong", [[1, 2], (1.0, 2.0), {"a": np.ones(2)}, 3.0, "ab", None])
def test_what_has_no_rows_is_named(wrong):
    with pytest.raises(TypeError, match=rf"arrays\[1\]: expected an array .* got {type(wrong).__name__}"):
        data.minibatches(np.ones(2), wrong, batch_size=1)


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
