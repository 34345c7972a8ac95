"""Gradients of some rows: the bits of a dense step on these rows, nothing else touched, on both backends."""

import pickle
import threading

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ravine as rv
from tests.conftest import assert_same_bits
from tests.reference.sparse import lazy_adagrad, lazy_adam, lazy_sgd, summed

F32 = np.float32
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
TAKE = {
    "sgd": lambda params, **options: rv.SGD(params, lr=0.3, **options),
    "adagrad": lambda params, **options: rv.Adagrad(params, lr=0.3, eps=1e-3, **options),
    "adam": lambda params, **options: rv.Adam(params, lr=0.3, betas=(0.8, 0.97), eps=1e-3, **options),
    "adam, eps inside": lambda params, **options: rv.Adam(params, lr=0.3, betas=(0.6, 0.9), eps_inside=True, **options),
    "adamw": lambda params, **options: rv.AdamW(params, lr=0.3, weight_decay=0.0, **options),
}
every_rule = pytest.mark.parametrize("make", TAKE.values(), ids=TAKE)
#: Of a table, and of the values of its rows.
KINDS = [("float64", "float64"), ("float32", "float32"), ("float32", "float16"), ("float32", BFLOAT16)]
KINDS += [("float16", "float16"), (BFLOAT16, BFLOAT16)]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))


def lookups(rows, n, width, dtype=np.float64, seed=0, rounds=6):
    """Which rows a batch looked up, many of them several times, and their gradients."""
    rng = np.random.default_rng(seed)
    for _ in range(rounds):
        indices = np.minimum(rng.geometric(0.15, n), rows) - 1
        yield rng.permutation(indices), rng.standard_normal((n, *width)).astype(dtype)


def state(opt, name="params"):
    return opt.state_dict()["states"][name]


def everything(opt):
    arrays = [*opt._engine.parameters, *(s for states in opt._engine.states for s in states)]
    return (
        pickle.dumps([np.asarray(a.get() if hasattr(a, "get") else a) for a in arrays]),
        opt.steps,
        opt._engine.updates,
    )


# What a step computes


def specified(indices, values, dtype):
    """The rows, rising, and their sums: float64 in order of occurrence, rounded to what is computed in, then stored."""
    sums = summed(indices, values)
    rows = np.array(sorted(sums), np.int64)
    wide = np.stack([sums[r] for r in rows]) if len(rows) else np.zeros((0, *values.shape[1:]))
    return rows, wide.astype(np.float64 if dtype == np.float64 else F32).astype(dtype)


@every_kind
@every_rule
def test_a_step_has_the_bits_of_a_dense_step_on_the_touched_rows(make, kind):
    dtype, of_values = map(np.dtype, kind)
    table = np.random.default_rng(1).standard_normal((23, 5)).astype(dtype)
    opt = make(table)
    for t, (indices, values) in enumerate(lookups(23, 40, (5,), of_values), 1):
        rows, sums = specified(indices, values, dtype)
        before, states = table.copy(), state(opt)
        dense = make(before[rows])
        dense.load_state_dict(
            {
                **dense.state_dict(),
                "step": t - 1,
                "updates": {"params": t - 1},
                "states": {"params": {name: array[rows] for name, array in states.items()}},
            }
        )
        dense.step(sums)
        opt.step(rv.RowSparse(indices, values))
        expected = [before, *states.values()]
        for whole, part in zip(expected, [*dense._engine.parameters, *dense._engine.states[0]], strict=True):
            whole[rows] = part
        for got, array in zip([table, *state(opt).values()], expected, strict=True):
            assert_same_bits(got, array)


@pytest.mark.parametrize("rule", ["sgd", "adagrad", "adam"])
def test_a_float64_run_agrees_with_the_reference(rule):
    make, w = TAKE[rule], np.random.default_rng(1).standard_normal((23, 2, 3))
    expected, states = w.copy(), [np.zeros_like(w) for _ in range({"sgd": 0, "adagrad": 1, "adam": 2}[rule])]
    opt = make(w)
    more = {"sgd": {}, "adagrad": {"eps": 1e-3}, "adam": {"eps": 1e-3, "betas": (0.8, 0.97)}}[rule]
    follow = {"sgd": lazy_sgd, "adagrad": lazy_adagrad, "adam": lazy_adam}[rule]
    for t, (indices, values) in enumerate(lookups(23, 9, (2, 3)), 1):
        opt.step(rv.RowSparse(indices, values))
        follow(expected, summed(indices, values), states, t, lr=0.3, **more)
    np.testing.assert_allclose(w, expected, rtol=1e-13, atol=1e-13)
    for got, exact in zip(state(opt).values(), states, strict=True):
        np.testing.assert_allclose(got, exact, rtol=1e-13, atol=1e-13)


def test_moments_of_untouched_rows_do_not_decay_and_t_is_the_parameters():
    table = np.ones((3, 1))
    opt = rv.Adam(table, lr=0.5, betas=(0.5, 0.5), eps=0.0)
    opt.step(rv.RowSparse([0], np.array([[4.0]])))
    opt.step(rv.RowSparse([2], np.array([[1.0]])))
    assert (table[1], state(opt)["m"][0], state(opt)["v"][0]) == (1.0, 2.0, 8.0)
    assert opt.state_dict()["updates"] == {"params": 2}
    # Row 2 comes for the first time at t = 2: m̂ = (1/2)/(3/4), v̂ = (1/2)/(3/4).
    np.testing.assert_allclose(table[2], 1 - 0.5 * (2 / 3) / np.sqrt(2 / 3), rtol=1e-15)


@every_rule
def test_all_rows_once_are_a_dense_step(make):
    a, b = (np.random.default_rng(1).standard_normal((9, 4)).astype(F32) for _ in range(2))
    one, two = make(a), make(b)
    for seed in range(3):
        g = np.random.default_rng(seed).standard_normal((9, 4)).astype(F32)
        order = np.random.default_rng(seed).permutation(9)
        one.step(g)
        two.step(rv.RowSparse(order, g[order]))
    assert everything(one) == everything(two)


def test_duplicates_are_added_in_order_of_occurrence_in_float64():
    tiny = 2.0**-53
    for values, expected in [([1.0, tiny, tiny], 1.0), ([tiny, tiny, 1.0], 1.0 + 2 * tiny)]:
        w = np.zeros((2, 1))
        rv.SGD(w, lr=1.0).step(rv.RowSparse([1, 1, 1], np.array(values)[:, None]))
        assert w[1, 0] == -expected
    w = np.zeros((1, 1), np.float16)
    rv.SGD(w, lr=1.0).step(rv.RowSparse(np.zeros(3, int), np.array([[65504], [65504], [-65504]], np.float16)))
    assert w[0, 0] == -65504


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_indices_give_the_sums_of_their_rows(data):
    rows, width = data.draw(st.sampled_from([1, 3, 300])), data.draw(st.sampled_from([(), (1,), (7,), (2, 3), (130,)]))
    indices = np.array(data.draw(st.lists(st.integers(0, rows - 1), max_size=40)), np.int64)
    values = np.random.default_rng(len(indices)).standard_normal((len(indices), *width)).astype(F32)
    w = np.zeros((rows, *width), F32)
    rv.SGD(w, lr=1.0).step(rv.RowSparse(indices, values))
    expected = np.zeros_like(w)
    at, sums = specified(indices, values, F32)
    expected[at] -= sums
    np.testing.assert_array_equal(w, expected)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_sums_do_not_depend_on_threads(threads):
    (indices, values), *_ = lookups(600, 5000, (130,), F32)
    w = np.zeros((600, 130), F32)
    rv.set_num_threads(threads)
    rv.SGD(w, lr=1.0).step(rv.RowSparse(indices, values))
    at, sums = specified(indices, values, F32)
    np.testing.assert_array_equal(w[at], -sums)


def test_flush_to_zero_set_by_another_library_changes_no_sum():
    w = np.zeros((2, 1), F32)
    gradient = rv.RowSparse([1, 1], np.full((2, 1), 1e-44, F32))
    opt = rv.SGD(w, lr=1.0)
    rv._core.disturb_environment(True)
    opt.step(gradient)
    rv._core.disturb_environment(False)
    assert w[1, 0].view(np.uint32) & 0x7FFFFFFF == 2 * F32(1e-44).view(np.uint32)


LAYOUTS = {
    "fortran": np.asfortranarray,
    "every other row": lambda a: np.repeat(a, 2, 0)[::2],
    "reversed": lambda a: np.ascontiguousarray(a[::-1, ::-1])[::-1, ::-1],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_strided_tables_values_and_indices_equal_contiguous_ones(layout):
    table = np.random.default_rng(1).standard_normal((9, 4)).astype(F32)
    other = layout(table.copy())
    one, two = TAKE["adam"](table), TAKE["adam"](other)
    for indices, values in lookups(9, 12, (4,), F32):
        one.step(rv.RowSparse(indices, values))
        two.step(rv.RowSparse(np.repeat(indices, 2)[::2].astype(np.int8), layout(values)))
    assert_same_bits(other, table)
    assert_same_bits(state(two)["v"], state(one)["v"])


# Beside dense gradients


def mixed(seed=0, dtype=F32):
    rng = np.random.default_rng(seed)
    return {"w": rng.standard_normal(5).astype(dtype), "emb": [rng.standard_normal((8, 3)).astype(dtype)]}


def test_dense_and_sparse_gradients_mix_and_each_parameter_counts_its_own():
    params, alone, dense = mixed(), mixed(), mixed()
    opt, of_rows, of_w = TAKE["adam"](params), TAKE["adam"](alone["emb"]), TAKE["adam"](dense["w"])
    for i, (indices, values) in enumerate(lookups(8, 6, (3,), F32)):
        g = mixed(i)["w"] if i != 2 else None
        rows = rv.RowSparse(indices, values) if i != 4 else None
        opt.step({"w": g, "emb": (rows,)})
        if rows is not None:
            of_rows.step([rows])
        if g is not None:
            of_w.step(g)
    assert opt.state_dict()["updates"] == {"w": 5, "emb.0": 5}
    assert_same_bits(params["w"], dense["w"])
    assert_same_bits(params["emb"][0], alone["emb"][0])
    opt.step(mixed(7))  # and a dense gradient of the table again
    assert opt.state_dict()["updates"] == {"w": 6, "emb.0": 6}


def test_clipping_sees_the_sums_by_value_and_by_norm():
    params, other = mixed(), mixed()
    (indices, values), *_ = lookups(8, 6, (3,), F32)
    rows, sums = specified(indices, values, F32)
    g = mixed(3)["w"]
    one = TAKE["adam"](params, clip_value=0.9, clip_norm=1.1, maximize=True)
    two = TAKE["adam"]({"w": other["w"], "emb": other["emb"][0][rows]}, clip_value=0.9, clip_norm=1.1, maximize=True)
    a = one.step({"w": g, "emb": [rv.RowSparse(indices, values)]})
    b = two.step({"w": g, "emb": sums})
    assert (a.grad_norm, a.lr, a.step, a.skipped, a.nonfinite) == (b.grad_norm, b.lr, b.step, b.skipped, b.nonfinite)
    assert a.grad_norm > 1.1
    assert_same_bits(params["w"], other["w"])
    assert_same_bits(params["emb"][0][rows], two._engine.parameters[1])


@pytest.mark.parametrize("values", [[3e38, 3e38], [np.inf, 1.0], [np.nan, 1.0]], ids=str)
def test_a_sum_that_is_not_finite_skips_the_step_and_leaves_everything(values):
    params = mixed()
    opt = TAKE["sgd"](params, nonfinite="skip")
    bad = np.zeros((4, 3), F32)
    bad[1, 2], bad[3, 2] = values
    before = everything(opt)
    info = opt.step({"w": mixed(1)["w"], "emb": [rv.RowSparse([7, 6, 0, 6], bad)]})
    assert (info.skipped, info.step, info.nonfinite) == (True, 0, {"emb.0": (1, 6 * 3 + 2)})
    assert repr(info).startswith("StepInfo(step=0, lr=0.3, grad_norm=None, skipped=True, nonfinite={'emb.0': (1, 20)")
    assert everything(opt) == before
    opt = TAKE["sgd"](params, nonfinite="raise")
    with pytest.raises(FloatingPointError, match=r"'emb.0': \(1, 20\).* nothing was changed"):
        opt.step({"w": mixed(1)["w"], "emb": [rv.RowSparse([7, 6, 0, 6], bad)]})
    assert everything(opt) == before


def test_a_gradient_of_no_rows_is_an_update_of_nothing():
    table = np.ones((3, 2))
    opt = rv.Adam(table)
    before = state(opt)
    info = opt.step(rv.RowSparse([], np.zeros((0, 2))))
    assert (info.step, opt.state_dict()["updates"]) == (1, {"params": 1})
    assert_same_bits(table, np.ones((3, 2)))
    np.testing.assert_equal(state(opt), before)


def test_schedules_groups_and_a_rate_set_by_hand_act():
    params = {"a": np.zeros((3, 1)), "b": np.zeros((3, 1))}
    opt = rv.SGD(params, lr=lambda t: 0.5 / (1 + t), groups=[("b", {"lr": 2.0})])
    for _ in range(2):
        info = opt.step({name: rv.RowSparse([1], np.ones((1, 1))) for name in params})
    assert (info.lr, params["a"][1, 0], params["b"][1, 0]) == (0.25, -0.75, -4.0)
    opt = rv.SGD(params["a"], lr=1.0)
    opt.lr = 0.25
    opt.step(rv.RowSparse([1], np.ones((1, 1))))
    assert params["a"][1, 0] == -1.0


def test_a_run_goes_on_bit_for_bit_from_its_state_and_from_a_file(tmp_path):
    def run(opt, first, last):
        for i, (indices, values) in enumerate(lookups(8, 6, (3,), F32)):
            if first <= i < last:
                opt.step({"w": mixed(i)["w"], "emb": [rv.RowSparse(indices, values)]})
        return opt

    whole, half = run(TAKE["adam"](mixed()), 0, 6), run(TAKE["adam"](mixed()), 0, 3)
    half.save(tmp_path / "run")
    resumed = TAKE["adam"](mixed(9))
    resumed.load(tmp_path / "run")
    assert everything(run(resumed, 3, 6)) == everything(whole)
    params = rv.trees.map(np.copy, half._params)
    again = TAKE["adam"](params)
    again.load_state_dict(half.state_dict())
    assert everything(run(again, 3, 6)) == everything(whole)


def test_history_records_such_steps():
    history, opt = rv.History(), rv.SGD(np.ones((3, 2)), lr=0.1, clip_norm=10.0, nonfinite="skip")
    history.record(opt.step(rv.RowSparse([1], np.array([[3.0, 4.0]]))), loss=1.0)
    assert (history["grad_norm"].values, history["skipped"].values) == ([5.0], [0.0])


# What is refused, and nothing is changed


def refused(opt, grads, error, match):
    before = everything(opt)
    with pytest.raises(error, match=match):
        opt.step(grads)
    assert everything(opt) == before


REFUSE = [
    rv.Lion,
    rv.RMSprop,
    lambda p: rv.SGD(p, lr=0.1, momentum=0.9),
    lambda p: rv.Adam(p, amsgrad=True),
    lambda p: rv.Adagrad(p, accumulate="mean"),
]


@pytest.mark.parametrize("make", REFUSE)
def test_rules_that_move_rows_without_a_gradient_are_refused(make):
    opt = make({"emb": np.ones((3, 2))})
    refused(
        opt, {"emb": rv.RowSparse([1], np.ones((1, 2)))}, TypeError, r"grads\['emb'\].*SGD without momentum, Adagrad"
    )


@pytest.mark.parametrize("option", ["weight_decay", "l2"])
def test_decay_is_refused_for_the_table_only(option):
    params = {"w": np.ones(2), "emb": np.ones((3, 2))}
    grads = {"w": np.ones(2), "emb": rv.RowSparse([1], np.ones((1, 2)))}
    refused(rv.Adam(params, **{option: 0.1}), grads, ValueError, rf"grads\['emb'\].*{option}.*groups")
    refused(rv.Adam(params, **{option: lambda t: 0.1}), grads, ValueError, option)
    opt = rv.Adam(params, **{option: 0.1}, groups=[("emb", {option: 0.0})])
    assert opt.step(grads).step == 1


WRONG = {
    "too high": ([1, 3], (2, 2), ValueError, r"grads\['emb'\]: expected indices in \[0, 3\), got 3 at place 1$"),
    "negative": ([-1, 0, 5], (3, 2), ValueError, r"got -1 at place 0 and 1 more"),
    "huge": (np.array([2**63], np.uint64), (1, 2), ValueError, "got 9223372036854775808"),
    "row": ([1, 2], (2, 3), ValueError, r"expected values of shape \(2, 2\).*got \(2, 3\)"),
    "axes": ([1, 2], (2,), ValueError, r"expected values of shape \(2, 2\).*got \(2,\)"),
}


@pytest.mark.parametrize("indices, shape, error, match", WRONG.values(), ids=WRONG)
def test_what_does_not_fit_the_table_is_refused_by_name(indices, shape, error, match):
    opt = rv.Adam({"w": np.ones(2), "emb": np.ones((3, 2))})
    refused(opt, {"w": np.ones(2), "emb": rv.RowSparse(indices, np.ones(shape))}, error, match)


def test_all_that_is_wrong_is_listed_with_the_dense_gradients():
    params = {"w": np.ones(2), "x": np.ones(()), "emb": np.ones((3, 2), F32)}
    rows = rv.RowSparse([7], np.ones((1, 2)))
    refused(
        rv.Adam(params), {"w": np.ones(3), "x": rows, "emb": rows}, ValueError, r"(?s)'w'.*'x'.*no rows.*'emb'.*float32"
    )
    refused(rv.Adam(params), {"w": np.ones(2), "emb": rows}, ValueError, r"(?s)missing 'x'.*'emb'")
    opt = rv.Adam(params)
    params["emb"] = params["emb"].copy()
    rows = rv.RowSparse([1], np.ones((1, 2), F32))
    refused(opt, {"w": np.ones(2), "x": None, "emb": rows}, ValueError, "another array than the one given")


@pytest.mark.parametrize(
    "indices, values, error, match",
    [
        ([0.5], np.ones((1, 2)), TypeError, "indices: expected an array of integers, got float64"),
        ([True], np.ones((1, 2)), TypeError, "indices: .*bool"),
        (np.ones((1, 1), int), np.ones((1, 2)), ValueError, r"indices: expected one axis, got shape \(1, 1\)"),
        (3, np.ones((1, 2)), TypeError, "indices: .*int"),
        ([0, 1], np.ones((1, 2)), ValueError, "values: expected a row for each of 2 indices"),
        ([0], np.array(1.0), ValueError, "values: "),
        ([0], [[1.0, 1.0]], TypeError, "values: expected a NumPy or CuPy array, got list"),
    ],
)
def test_what_is_no_gradient_of_rows_is_refused_when_it_is_made(indices, values, error, match):
    with pytest.raises(error, match=match):
        rv.RowSparse(indices, values)


def test_it_cannot_be_changed():
    rows = rv.RowSparse([0], np.ones((1, 2)))
    with pytest.raises(AttributeError):
        rows.indices = np.ones(3, int)
    assert repr(rows) == "RowSparse(1 rows of shape (2,), float64)"


def test_values_that_are_the_tables_own_memory_are_read_before_it_changes():
    table = np.arange(6.0).reshape(3, 2)
    rv.SGD(table, lr=1.0).step(rv.RowSparse([2, 0], table[:2]))
    np.testing.assert_array_equal(table, [[-2, -2], [2, 3], [4, 4]])


def test_a_step_with_rows_and_another_thread_exclude_each_other():
    table, entered, leave = np.ones((3, 2)), threading.Event(), threading.Event()

    def lr(step):
        if step == 1:
            entered.set()
            assert leave.wait(60)
        return 0.5

    opt = rv.SGD(table, lr=lr)
    rows = rv.RowSparse([1], np.ones((1, 2)))
    opt.step(rows)
    thread = threading.Thread(target=opt.step, args=(rows,))
    thread.start()
    assert entered.wait(60)
    for grads in (rows, np.ones((3, 2))):
        with pytest.raises(RuntimeError, match="another thread"):
            opt.step(grads)
    leave.set()
    thread.join()
    assert (opt.steps, table[1, 0]) == (2, 0.0)


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupted_step_is_whole_or_not_at_all(when, monkeypatch):
    params, expected = mixed(), mixed()
    (indices, values), *_ = lookups(8, 6, (3,), F32)
    grads = {"w": mixed(1)["w"], "emb": [rv.RowSparse(indices, values)]}
    opt, other = TAKE["adam"](params), TAKE["adam"](expected)
    make = rv.SGD._bound_alike

    class Interrupted:
        def __init__(self, engine):
            self._engine = engine

        def __getattr__(self, name):
            return getattr(self._engine, name)

        def step(self, *arguments):
            if when == "after":
                self._engine.step(*arguments)
            raise KeyboardInterrupt

    monkeypatch.setattr(rv.Optimizer, "_bound_alike", lambda *args: Interrupted(make(*args)))
    with pytest.raises(KeyboardInterrupt):
        opt.step(grads)
    monkeypatch.undo()
    if when == "after":
        other.step(grads)
    assert everything(opt) == everything(other)


# CuPy


@every_kind
@every_rule
def test_cupy_has_the_bits_of_numpy(gpu, make, kind):
    dtype, of_values = map(np.dtype, kind)
    host = {"w": np.ones(3, dtype), "emb": np.random.default_rng(1).standard_normal((30, 7)).astype(dtype)}
    device = rv.trees.map(gpu.asarray, host)
    options = {"clip_value": 1.5, "clip_norm": 2.0, "maximize": True, "nonfinite": "skip"}
    one, two = make(host, **options), make(device, **options)
    for i, (indices, values) in enumerate(lookups(30, 40, (7,), of_values)):
        if i == 3:
            values[5, 2] = np.inf
        g = np.full(3, i, dtype) if i != 1 else None
        on_device = gpu.asarray(indices) if i % 2 else indices
        a = one.step({"w": g, "emb": rv.RowSparse(indices, values)})
        b = two.step({"w": None if g is None else gpu.asarray(g), "emb": rv.RowSparse(on_device, gpu.asarray(values))})
        assert repr(b) == repr(a)
        assert a.skipped == (i == 3)
    assert one.state_dict()["updates"] == {"w": 4, "emb": 5}
    assert everything(two) == everything(one)


@pytest.mark.parametrize("layout", ["fortran", "every other row"])
def test_strided_cupy_arrays_equal_contiguous_ones(gpu, layout):
    host = np.random.default_rng(1).standard_normal((9, 200)).astype(F32)
    strided = {"fortran": gpu.asfortranarray, "every other row": lambda a: gpu.repeat(a, 2, 0)[::2]}[layout]
    table = strided(gpu.asarray(host))
    one, two = TAKE["adam"](host), TAKE["adam"](table)
    for indices, values in lookups(9, 12, (200,), F32):
        one.step(rv.RowSparse(indices, values))
        two.step(rv.RowSparse(indices, strided(gpu.asarray(values))))
    assert everything(two) == everything(one)


def test_cupy_refuses_what_numpy_refuses(gpu):
    opt = rv.Adam({"emb": gpu.ones((3, 2), F32)})
    values = gpu.ones((1, 2), F32)
    refused(opt, {"emb": rv.RowSparse([3], values)}, ValueError, r"grads\['emb'\]: expected indices in \[0, 3\)")
    refused(opt, {"emb": rv.RowSparse([0], np.ones((1, 2), F32))}, TypeError, "not where the parameter is")
    refused(rv.Lion(gpu.ones((3, 2), F32)), rv.RowSparse([0], values), TypeError, "SGD without momentum")
    raising = rv.Adam(gpu.ones((3, 2), F32), nonfinite="raise")
    refused(raising, rv.RowSparse([2], gpu.asarray(np.array([[1, np.inf]], F32))), FloatingPointError, r"\(1, 5\)")
    assert raising.step(rv.RowSparse([2], values)).step == 1


def test_a_captured_step_with_rows_is_refused(gpu, monkeypatch):
    opt = rv.Adam(gpu.ones((3, 2), F32))
    monkeypatch.setattr(type(opt._backend.device), "capturing", lambda self: True)
    with pytest.raises(RuntimeError, match="captured step cannot take RowSparse"):
        opt.step(rv.RowSparse([0], gpu.ones((1, 2), F32)))


# Beside the options of a step


def test_a_start_of_the_sum_is_refused_because_it_is_added_to_every_row_at_once():
    table = np.ones((2, 1))
    opt = rv.Adagrad({"emb": table}, lr=1.0, initial=3.0)
    before = everything(opt)
    with pytest.raises(
        ValueError, match=r"grads\['emb'\]: RowSparse, but initial is added in the parameter's first up"
    ):
        opt.step({"emb": rv.RowSparse([0], np.ones((1, 1)))})
    assert everything(opt) == before


def test_rows_are_refused_while_accumulated_gradients_wait():
    table = np.ones((2, 1))
    opt = rv.SGD(table, lr=1.0)
    opt.accumulate(np.ones((2, 1)))
    before = everything(opt)
    with pytest.raises(ValueError, match="step: accumulated gradients are waiting"):
        opt.step(rv.RowSparse([0], np.ones((1, 1))))
    assert everything(opt) == before
    opt.step()
    assert (table == 0).all()


@pytest.mark.parametrize(
    "options",
    [{"lookahead": rv.Lookahead()}, {"average": rv.EMA()}, {"master": "float32"}],
    ids=["lookahead", "average", "master"],
)
def test_what_follows_the_rule_is_refused_because_it_would_touch_every_row(options):
    opt = rv.SGD(np.ones((2, 1), np.float16), lr=1.0, **options)
    before = everything(opt)
    with pytest.raises(ValueError, match=rf"got RowSparse: {next(iter(options))} would read and write every row"):
        opt.step(rv.RowSparse([0], np.ones((1, 1), np.float16)))
    assert everything(opt) == before


@every_rule
@pytest.mark.parametrize("scale", [8.0, 3.0])
def test_scaled_rows_are_unscaled_first(make, scale):
    one, other = np.ones((3, 2)), np.ones((2, 2))
    sparse, dense = make(one, clip_norm=0.7), make(other, clip_norm=0.7)
    values = np.random.default_rng(5).standard_normal((2, 2))
    for _ in range(3):
        info = sparse.step(rv.RowSparse([2, 0], values), grad_scale=scale)
        assert info.grad_norm == dense.step(values[::-1].copy(), grad_scale=scale).grad_norm
    assert_same_bits(one[[0, 2]], other)
    assert (one[1] == 1).all()


def test_a_dynamic_scale_leaves_out_rows_that_are_not_finite():
    table, scale = np.ones((2, 1), F32), rv.DynamicLossScale(init_scale=4.0)
    opt = rv.SGD(table, lr=1.0)
    assert opt.step(rv.RowSparse([1], np.full((1, 1), np.inf, F32)), grad_scale=scale).skipped
    assert scale.value == 2.0
    assert (table == 1).all()
    assert not opt.step(rv.RowSparse([1], np.full((1, 1), 2.0, F32)), grad_scale=scale).skipped
    assert table.ravel().tolist() == [1.0, 0.0]
