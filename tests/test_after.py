"""What follows the rule in the same pass: exact copies of half-precision parameters, averages, Lookahead."""

import itertools
from functools import partial

import ml_dtypes
import numpy as np
import pytest

import ravine as rv
from tests import specification
from tests.conftest import RULES, assert_same_bits, engine, hyper_sets, instruction_sets
from tests.reference import averages as reference
from tests.test_bits import numbers
from tests.test_rules import CONFIGURATIONS, configuration

F16, BF16 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
HYPER = {rule: next(hyper_sets(rule)) for rule in RULES}
#: All at once; k and every differ, and so does what each of seven updates does.
AFTER = {
    "lookahead": rv.Lookahead(k=3, alpha=0.3),
    "average": rv.EMA(decay=0.4, start=1, every=2),
    "master": "float32",
}

every_rule = pytest.mark.parametrize("rule", RULES)
half_dtypes = pytest.mark.parametrize("dtype", [F16, BF16], ids=str)


def gentle(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32).astype(dtype)


def tree(seed=0):
    return {"w": gentle((5, 7), F16, seed), "b": [gentle(9, F32, seed + 1), gentle(4, BF16, seed + 2)]}


def run(opt, first, last, make=tree):
    for seed in range(first, last):
        opt.step(make(100 + 10 * seed))
    return opt


def all_bits(opt):
    kept = [array for of in opt._engine.kept for array in of.values()]
    states = [state for states in opt._engine.states for state in states]
    arrays = [*opt._engine.parameters, *states, *kept]
    return [array.tobytes() for array in arrays], opt.steps, opt._engine.updates


# The specification, and what the bits do not depend on.


@every_rule
@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64], ids=str)
def test_every_rule_equals_the_specification_with_all_that_follows(rule, dtype):
    w = numbers(203, dtype)
    at, made = w.copy(), engine(rule, w, HYPER[rule], weight_decay=0.13, after=AFTER)
    states = [np.zeros_like(state) for state in made.states[0]]
    kept = {name: np.zeros_like(array) for name, array in made.kept[0].items()}
    assert list(kept) == ["master", "average", "slow"][dtype.itemsize > 2 :] + ["average_rest"] * (dtype != F64)
    for t in range(1, 8):
        g = numbers(203, dtype, t)
        if t == 4:  # from outside
            w[:20] = at[:20] = numbers(20, dtype, 50)
        made.step(g)
        at, states = specification.step(
            rule, at, g, states, t=t, hyper=HYPER[rule], weight_decay=0.13, after=AFTER, kept=kept
        )
        assert_same_bits(w, at, t)
        for name, array in kept.items():
            assert_same_bits(made.kept[0][name], array, f"{name} after {t}")
        for got, state in zip(made.states[0], states, strict=True):
            assert_same_bits(got, state, t)


def stepped(params, gradients):
    params = [p.copy() if p.flags.c_contiguous else p.copy(order="F") for p in params]
    made = engine("adam", params, HYPER["adam"], after=AFTER)
    for of_step in gradients:
        made.step(of_step)
    return [*params, *(array for kept in made.kept for array in kept.values())]


def test_same_bits_for_any_instruction_set_and_thread_count():
    lengths = (1, 7, 31, 32, 33, 127, 128, 129, 1023, 1024, 1025, 4095, 4097, 30_000)
    params = [numbers(n, dtype, n) for n in lengths for dtype in (F16, BF16, F32, F64)]
    gradients = [[numbers(p.shape, p.dtype, seed) for p in params] for seed in range(4)]
    rv._core.set_simd("baseline")
    rv.set_num_threads(1)
    expected = stepped(params, gradients)
    for level, threads in itertools.product(instruction_sets(), (1, 3)):
        rv._core.set_simd(level)
        rv.set_num_threads(threads)
        for i, (got, right) in enumerate(zip(stepped(params, gradients), expected, strict=True)):
            assert_same_bits(got, right, f"{level}, {threads} threads, array {i}")


def test_strided_parameters_have_the_bits_of_contiguous_ones():
    params = [numbers((67, 45), dtype) for dtype in (F16, BF16, F32, F64)]
    gradients = [[numbers(p.shape, p.dtype, seed) for p in params] for seed in range(4)]
    strided = stepped([np.asfortranarray(p) for p in params], gradients)
    assert not strided[0].flags.c_contiguous
    for got, expected in zip(strided, stepped(params, gradients), strict=True):
        assert_same_bits(got, expected)


# Exact copies.


@half_dtypes
@pytest.mark.parametrize("row", CONFIGURATIONS, ids=configuration)
def test_a_parameter_with_an_exact_copy_is_the_rounding_of_one_in_float32(row, dtype):
    cls, arguments, _, _ = row
    w = gentle(203, dtype)
    wide = w.astype(np.float32)
    options = {"lr": 0.03, "weight_decay": 0.1, **arguments}
    opt, other = cls({"w": w}, master="float32", **options), cls({"w": wide}, master="float32", **options)
    for seed in range(1, 6):
        g = gentle(203, dtype, seed)
        opt.step({"w": g})
        other.step({"w": g})
        assert_same_bits(opt.state_dict()["states"]["w"]["master"], wide)
        assert_same_bits(w, wide.astype(dtype))
    assert "master" not in other.state_dict()["states"]["w"]


@half_dtypes
def test_updates_below_the_last_bit_add_up(dtype):
    for master, expected in ((None, 1.0), ("float32", 0.5)):
        w = np.ones(3, dtype)
        opt = rv.SGD(w, lr=2.0**-13, master=master)
        for _ in range(4096):
            opt.step(np.ones(3, dtype))
        assert (w == expected).all()


def test_an_element_changed_from_outside_counts_as_it_is():
    w = np.array([1, 1, 1, 0, 0], np.float16)
    opt = rv.SGD(w, lr=2.0**-13, master="float32")
    g = np.array([1, 1, 1, 0, 2.0**-14], np.float16)
    opt.step(g)
    lost = np.float32(1 - 2.0**-13)
    assert w[0] == 1  # 1 − 2⁻¹³ is half way, and 1 is even
    w[1] = 2
    w[3] = -0.0  # differs from what it was in its sign alone
    opt.step(g)
    master = opt.state_dict()["states"]["params"]["master"]
    np.testing.assert_array_equal(master[:3], [lost - 2.0**-13, 2 - 2.0**-13, lost - 2.0**-13])
    assert np.signbit(master[3])
    assert master[4] == -(2.0**-26)


def test_assigning_what_it_is_rounded_to_changes_nothing():
    runs = []
    for assigned in (False, True):
        params = tree()
        opt = rv.AdamW(params, lr=1e-3, master="float32")
        for seed in range(4):
            opt.step(tree(seed))
            if assigned:
                for w in rv.trees.leaves(params).values():
                    w[...] = w.copy()
        runs.append(all_bits(opt))
    assert runs[0] == runs[1]


def test_a_state_has_the_exact_copy_as_the_next_step_would_take_it():
    w = gentle(9, F16)
    opt = rv.SGD(w, lr=1e-4, master="float32")
    assert_same_bits(opt.state_dict()["states"]["params"]["master"], w.astype(np.float32), "before the first step")
    opt.step(gentle(9, F16, 1))
    before = opt.state_dict()["states"]["params"]["master"]
    w[:2] = [7, np.nan]
    after = opt.state_dict()["states"]["params"]["master"]
    assert_same_bits(after, np.append(np.array([7, np.nan], np.float32), before[2:]))


def test_what_is_no_exact_copy_is_refused():
    with pytest.raises(ValueError, match="master: expected 'float32', 'split' or None, got 'float64'"):
        rv.SGD(np.ones(2, F16), lr=0.1, master="float64")


# Averages.

AVERAGES = [
    (rv.EMA(), partial(reference.ema, decay=0.999, warmup=True)),
    (rv.EMA(0.7, warmup=False), partial(reference.ema, decay=0.7, warmup=False)),
    (rv.EMA(0.3, start=2), partial(reference.ema, decay=0.3, warmup=True, start=2)),
    (rv.EMA(0.0, warmup=False, every=2), partial(reference.ema, decay=0.0, warmup=False, every=2)),
    (rv.EMA(0.9, start=3, every=4), partial(reference.ema, decay=0.9, warmup=True, start=3, every=4)),
    (rv.SWA(), reference.swa),
    (rv.SWA(start=5), partial(reference.swa, start=5)),
    (rv.SWA(start=4, every=3), partial(reference.swa, start=4, every=3)),
]


@pytest.mark.parametrize("average, expected", AVERAGES, ids=[repr(row[0]) for row in AVERAGES])
@pytest.mark.parametrize("dtype", [F64, F32, F16], ids=str)
def test_an_average_is_the_weighted_sum_of_the_points_that_count(average, expected, dtype):
    w, points = gentle(50, dtype), []
    opt = rv.AdamW({"w": w}, lr=0.1, average=average, master="float32")
    for t in range(1, 25):
        assert_same_bits(opt.averages()["w"], opt.averages()["w"].astype(dtype))
        opt.step({"w": gentle(50, dtype, t)})
        state = opt.state_dict()["states"]["w"]
        points.append(state.get("master", w).copy())
        if t < average.start + average.every:
            assert_same_bits(opt.averages()["w"], w, "the parameter itself before the first point")
            continue
        exact = expected(points)
        np.testing.assert_allclose(state["average"], exact, atol=1e-14 if dtype == F64 else 1e-6)
        assert_same_bits(opt.averages()["w"], state["average"].astype(dtype))


#: Averages, how many points at 1 and then at 1 + d, and which part of d their average is above 1, from the weights.
LONG = {
    "swa": (rv.SWA(), 20_000, 20_000, 1 / 2),
    "swa, every second": (rv.SWA(start=11, every=2), 10_011, 20_000, 2 / 3),
    "ema": (rv.EMA(0.9999, warmup=False), 1, 20_000, 1 - 0.9999**20_000),
    "ema, every second": (rv.EMA(0.9999, warmup=False, every=2), 2, 20_000, 1 - 0.9999**10_000),
}
every_long = pytest.mark.parametrize("average, first, then, part", LONG.values(), ids=LONG)


def long_run(w, g, d, average, first, then, **options):
    """Points at 1, then at 1 + d; by gradients of d and 0, so that a parameter may have a copy that knows better."""
    opt = rv.SGD({"w": w}, lr=1.0, average=average, **options)
    nothing, back = {"w": 0 * g}, {"w": g * -d}
    for i in range(first + then):
        opt.step(back if i == first else nothing)
    return opt


@every_long
@pytest.mark.parametrize("d", [1e-3, 4e-4])
@pytest.mark.parametrize("sign", [1, -1])
def test_an_average_keeps_what_float32_loses(average, first, then, part, d, sign):
    w = np.full(5, sign, np.float32)
    opt = long_run(w, np.full(5, sign, np.float32), d, average, first, then)
    np.testing.assert_allclose(w, sign * (1 + d), rtol=1e-7)
    np.testing.assert_allclose(opt.averages()["w"], sign * (1 + part * d), rtol=1e-7)
    state = opt.state_dict()["states"]["w"]
    assert state["average"].dtype == state["average_rest"].dtype == F32
    assert (abs(state["average_rest"]) <= np.spacing(abs(state["average"]))).all()


@every_long
@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
@pytest.mark.parametrize("options", [{"master": "float32"}, {"master": "split"}], ids=lambda given: given["master"])
def test_the_average_of_a_half_precision_parameter_does_so_too(dtype, options, average, first, then, part):
    if options["master"] == "split" and dtype == F16:
        dtype, options = F16, {}  # 1 + 2⁻¹⁰ is a float16
    opt = long_run(np.ones(5, dtype), np.ones(5, dtype), 2.0**-10, average, first, then, **options)
    np.testing.assert_allclose(opt.state_dict()["states"]["w"]["average"], 1 + part * 2.0**-10, rtol=1e-7)


def test_float64_needs_no_such_array():
    w = np.ones(3)
    opt = long_run(w, np.ones(3), 1e-3, rv.SWA(), 2000, 2000)
    np.testing.assert_allclose(opt.averages()["w"], 1.0005, rtol=1e-12)
    assert sorted(opt.state_dict()["states"]["w"]) == ["average"]


def test_whole_matrices_average_so_too():
    w = {"w": np.ones((2, 2), F32)}
    opt = rv.Muon(w, lr=0.0, average=rv.SWA())
    for point in (1.0, 1.001):
        w["w"][...] = point
        for _ in range(2000):
            opt.step({"w": np.ones((2, 2), F32)})
    np.testing.assert_allclose(opt.averages()["w"], 1.0005, rtol=1e-7)


def test_the_first_point_starts_both_anew():
    w = np.full(3, np.inf, np.float32)
    opt = rv.SGD(w, lr=1.0, average=rv.SWA(start=1))
    opt.step(np.zeros(3, np.float32))
    assert not opt.state_dict()["states"]["params"]["average_rest"].any()
    w[:] = 1.5
    opt.step(np.zeros(3, np.float32))
    opt.step(np.full(3, -1e-9, np.float32))
    state = opt.state_dict()["states"]["params"]
    assert (state["average"] == 1.5).all()
    assert not state["average_rest"].any()


def without_rest(opt):
    """A state as it was before averages kept what they lose."""
    state = opt.state_dict()
    for arrays in state["states"].values():
        arrays.pop("average_rest", None)
    return state


def test_a_state_without_the_rest_starts_it_at_zero():
    one, other = (run(rv.AdamW(tree(), lr=0.01, **AFTER), 0, 6) for _ in range(2))
    state = without_rest(one)
    other.load_state_dict(state)
    for name, arrays in other.state_dict()["states"].items():
        rest = arrays.pop("average_rest")
        assert not rest.any()
        assert sorted(arrays) == sorted(state["states"][name])
        for kind, array in arrays.items():
            assert_same_bits(array, state["states"][name][kind], kind)


@pytest.mark.parametrize("strict", [True, False])
def test_a_file_without_the_rest_starts_it_at_zero(strict, tmp_path, monkeypatch):
    one, other = (run(rv.AdamW(tree(), lr=0.01, **AFTER), 0, 6) for _ in range(2))
    tensors = rv.checkpoint.snapshot._tensors

    def older(opt, params):
        return {
            name: {tensor: array for tensor, array in of.items() if not tensor.startswith("average_rest/")}
            for name, of in tensors(opt, params).items()
        }

    with monkeypatch.context() as patch:
        patch.setattr(rv.checkpoint.snapshot, "_tensors", older)
        one.save(tmp_path / "run")
    loaded = other.load(tmp_path / "run", strict=strict)
    assert loaded.kept == loaded.left_out == ()
    assert [kept["average_rest"].any() for kept in other._engine.kept] == [False] * 3
    assert_same_bits(other._engine.kept[0]["average"], one._engine.kept[0]["average"])


@pytest.mark.parametrize("rest", [1e-3, np.nan, np.inf])
def test_an_average_changed_in_a_state_has_lost_nothing(rest):
    opt = run(rv.SGD({"w": np.ones(3, F32)}, lr=0.1, average=rv.SWA()), 0, 0)
    for _ in range(3):
        opt.step({"w": np.ones(3, F32)})
    state = opt.state_dict()
    state["states"]["w"] |= {"average": np.full(3, 2.0, F32), "average_rest": np.array([rest, 0, 2.0**-24], F32)}
    opt.load_state_dict(state)
    assert opt.state_dict()["states"]["w"]["average_rest"].tolist() == [0, 0, 2.0**-24]


@every_rule
def test_an_average_does_not_change_the_run(rule):
    runs = []
    for average in (None, rv.EMA(0.9), rv.SWA(every=2)):
        w = gentle(203, F32)
        made = engine(rule, w, HYPER[rule], after={"average": average})
        for seed in range(4):
            made.step(gentle(203, F32, seed + 1))
        runs.append([w.tobytes(), *(state.tobytes() for state in made.states[0])])
    assert runs[0] == runs[1] == runs[2]


def test_a_parameter_without_a_gradient_is_no_new_point():
    params = {"a": np.array([4.0]), "b": np.array([4.0])}
    opt = rv.SGD(params, lr=1.0, average=rv.SWA())
    for a, b in [(1, 1), (1, None), (1, 1)]:
        opt.step({"a": np.full(1, float(a)), "b": None if b is None else np.full(1, float(b))})
    assert (opt.averages()["a"], opt.averages()["b"]) == (2.0, 2.5)


def test_a_skipped_step_leaves_all_that_follows():
    opt = rv.AdamW(tree(), lr=0.1, nonfinite="skip", **AFTER)
    for seed in range(7):
        run(opt, seed, seed + 1)
        before = all_bits(opt)
        bad = tree(seed)
        bad["b"][0][3] = np.nan
        assert opt.step(bad).skipped
        assert all_bits(opt) == before


def test_averages_are_new_arrays_nested_as_the_parameters_are():
    params = tree()
    opt = run(rv.SGD(params, lr=0.1, average=rv.EMA(0.5)), 0, 2)
    averages = opt.averages()
    for (name, w), average in zip(rv.trees.leaves(params).items(), rv.trees.leaves(averages).values(), strict=True):
        assert (average.dtype, average.shape) == (w.dtype, w.shape), name
        assert not any(np.shares_memory(average, own) for own in (w, opt._arrays()[name]["average"]))
    grouped = rv.SGD([{"params": {"w": np.ones(2)}}, {"params": np.ones(1)}], lr=0.1, average=rv.SWA())
    assert [type(group) for group in grouped.averages()] == [dict, np.ndarray]


def test_an_optimizer_without_averages_says_so():
    opt = rv.SGD(np.ones(1), lr=0.1)
    for ask in (opt.averages, lambda: opt.averaged_parameters().__enter__()):
        with pytest.raises(ValueError, match=r"SGD keeps none; make it with average=rv\.EMA\(\)"):
            ask()


@pytest.mark.parametrize("cls", [rv.ASGD, rv.ScheduleFreeSGD, rv.ScheduleFreeAdamW])
def test_rules_that_average_take_no_other_average(cls):
    with pytest.raises(ValueError, match=f"average: {cls.__name__} keeps one of its own"):
        cls(np.ones(2), lr=0.1, average=rv.EMA())


# In the parameters' place.


@pytest.mark.parametrize("cls", [partial(rv.SGD, average=rv.EMA(0.5)), rv.ScheduleFreeSGD])
def test_averages_take_the_parameters_place_and_give_it_back(cls):
    params = tree() | {"t": np.asfortranarray(gentle((4, 3), F64))}
    opt = cls(params, lr=0.1)
    for seed in range(3):
        opt.step(tree(seed) | {"t": gentle((4, 3), F64, seed)})
    params["w"][0, :2] = [-0.0, np.nan]
    before, averages = all_bits(opt), rv.trees.leaves(opt.averages())
    with opt.averaged_parameters():
        for name, w in rv.trees.leaves(params).items():
            assert_same_bits(w, averages[name])
        params["t"][...] = 7
    assert all_bits(opt) == before
    for error in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(error), opt.averaged_parameters():
            raise error
        assert all_bits(opt) == before
    opt.step(rv.trees.map(np.copy, params))


def test_nothing_takes_the_averages_for_the_parameters(tmp_path):
    opt = run(rv.SGD(tree(), lr=0.1, **AFTER), 0, 3)
    state = opt.state_dict()
    before = all_bits(opt)
    calls = {
        "step": lambda: opt.step(tree()),
        "state_dict": opt.state_dict,
        "load_state_dict": lambda: opt.load_state_dict(state),
        "save": lambda: opt.save(tmp_path / "x"),
        "load": lambda: opt.load(tmp_path / "x"),
        "averages": lambda: opt.averaged_parameters().__enter__(),
    }
    with opt.averaged_parameters():
        for name, call in calls.items():
            with pytest.raises(RuntimeError, match=f"^{name}: the averages stand in the parameters' place"):
                call()
    assert all_bits(opt) == before
    run(opt, 3, 4)


# Lookahead.


@pytest.mark.parametrize("k, alpha", [(1, 0.3), (2, 0.8), (5, 0.5)])
@pytest.mark.parametrize(
    "row", [row for row in CONFIGURATIONS if row[2] not in rv.Optimizer._sequences], ids=configuration
)
def test_lookahead_is_algorithm_1_around_every_rule(row, k, alpha):
    cls, arguments, _, _ = row
    w = np.random.default_rng(0).standard_normal(50)
    gradients = list(np.random.default_rng(1).standard_normal((12, 50)))
    inner_w = w.copy()
    inner_opt = cls(inner_w, lr=0.03, **arguments)

    def inner(at, g):
        inner_w[:] = at
        inner_opt.step(g)
        return inner_w.copy()

    fast, slow = reference.lookahead(w.copy(), inner, gradients, k, alpha)
    opt = cls(w, lr=0.03, lookahead=rv.Lookahead(k, alpha), **arguments)
    for t, g in enumerate(gradients):
        opt.step(g)
        np.testing.assert_allclose(w, fast[t], rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(opt.state_dict()["states"]["params"]["slow"], slow[t // k], rtol=1e-12, atol=1e-13)


def test_the_whole_way_is_no_lookahead():
    runs = []
    for lookahead in (None, rv.Lookahead(k=2, alpha=1.0)):
        opt = run(rv.Adam(tree(), lr=0.1, lookahead=lookahead), 0, 5)
        runs.append([w.tobytes() for w in opt._engine.parameters])
    assert runs[0] == runs[1]


def test_the_average_sees_where_lookahead_has_gone():
    w = np.array([4.0])
    opt = rv.SGD(w, lr=1.0, lookahead=rv.Lookahead(2, 0.5), average=rv.SWA())
    for _ in range(4):
        opt.step(np.ones(1))
    assert (w, opt.averages()) == (2.0, 2.5)  # 3, 3 (not 2), 2, 2 (not 1)


@pytest.mark.parametrize(
    "make",
    [
        partial(rv.SGD, momentum=0.9, form="heavy_ball"),
        rv.ASGD,
        rv.ScheduleFreeSGD,
        rv.ScheduleFreeAdamW,
    ],
)
def test_rules_that_know_where_the_parameter_was_refuse_lookahead(make):
    with pytest.raises(ValueError, match=r"lookahead: the states of .* refer to where the parameter was"):
        make(np.ones(2), lr=0.1, lookahead=rv.Lookahead())


def test_rules_with_a_weight_among_their_states_are_among_those():
    weights = {rule for rule in RULES if "weight" in RULES[rule]["states"].values()}
    assert weights <= rv.Optimizer._sequences <= RULES.keys()


# States and checkpoints.

OPTIONS = {
    "master": {"master": "float32"},
    "ema": {"average": rv.EMA(0.8, every=2)},
    "swa": {"average": rv.SWA(start=3)},
    "lookahead": {"lookahead": rv.Lookahead(3)},
    "all": AFTER,
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def restarted(opt, options):
    params = rv.trees.map(np.copy, opt._params)
    return rv.AdamW(params, lr=0.01, **options)


@every_option
@pytest.mark.parametrize("stop", [1, 4, 6])
def test_a_run_goes_on_bit_for_bit(options, stop, tmp_path):
    whole = run(rv.AdamW(tree(), lr=0.01, **options), 0, 9)
    half = run(rv.AdamW(tree(), lr=0.01, **options), 0, stop)
    half.save(tmp_path / "run")
    by_state, by_file = restarted(half, options), rv.AdamW(tree(77), lr=0.01, **options)
    by_state.load_state_dict(half.state_dict())
    by_file.load(tmp_path / "run")
    for resumed in (by_state, by_file):
        assert all_bits(resumed) == all_bits(half)
        assert all_bits(run(resumed, stop, 9)) == all_bits(whole)


def half_tree(seed=0):
    shapes = {"scalar": (), "empty": (0, 3)}
    return {
        "w": gentle((5, 7), F16, seed),
        "b": [gentle(4, BF16, seed + 2)],
        **{name: np.array(gentle(shape, F16, seed + 3)) for name, shape in shapes.items()},
    }


@pytest.mark.parametrize("changed", [False, True])
def test_parameters_come_back_from_their_exact_copies(changed, tmp_path):
    opt = run(rv.AdamW(half_tree(), lr=0.01, master="float32"), 0, 3, half_tree)
    if changed:
        opt._engine.parameters[0][1, 1] = 3
        opt._engine.parameters[2][...] = 3
    opt.save(tmp_path / "run", params=False)
    by_state, by_file = (rv.AdamW(half_tree(9), lr=0.01, master="float32") for _ in range(2))
    by_state.load_state_dict(opt.state_dict())
    by_file.load(tmp_path / "run")
    for resumed in (by_state, by_file):
        assert all_bits(resumed) == all_bits(opt)


def test_loading_without_parameters_leaves_them_and_they_count(tmp_path):
    opt = run(rv.AdamW(half_tree(), lr=0.01, master="float32"), 0, 3, half_tree)
    opt.save(tmp_path / "run")
    other = half_tree(9)
    resumed = rv.AdamW(other, lr=0.01, master="float32")
    resumed.load(tmp_path / "run", params=False)
    assert_same_bits(other["w"], half_tree(9)["w"])
    assert_same_bits(resumed.state_dict()["states"]["w"]["master"], other["w"].astype(np.float32))


def test_parameters_without_a_copy_do_not_come_back(tmp_path):
    run(rv.AdamW(tree(), lr=0.01, master="float32"), 0, 2).save(tmp_path / "run", params=False)
    opt = rv.AdamW(tree(9), lr=0.01, master="float32")
    before = all_bits(opt)
    with pytest.raises(ValueError, match="parameters: none in the file"):
        opt.load(tmp_path / "run")
    assert all_bits(opt) == before


def test_what_is_loaded_in_part_leaves_the_other_parameters(tmp_path):
    run(rv.AdamW(half_tree(), lr=0.01, master="float32"), 0, 2, half_tree).save(tmp_path / "run", params=False)
    params = half_tree(9)
    params["w"] = params["w"][:, :3].copy()
    before = params["w"].copy()
    loaded = rv.AdamW(params, lr=0.01, master="float32").load(tmp_path / "run", strict=False)
    assert loaded.kept == loaded.left_out == ("w",)
    assert_same_bits(params["w"], before)


@every_option
def test_what_the_other_does_not_keep_is_refused(options, tmp_path):
    one, other = run(rv.AdamW(tree(), lr=0.01, **options), 0, 4), run(rv.AdamW(tree(), lr=0.01), 0, 4)
    for number, (saved, into) in enumerate([(one, other), (other, one)]):
        saved.save(tmp_path / f"{number}")
        before = all_bits(into)
        with pytest.raises(ValueError, match=r"states\['w'\]\['(master|average|slow)'\]: expected"):
            into.load_state_dict(saved.state_dict())
        with pytest.raises(ValueError, match=r"(lookahead|average|master): expected .*; make the optimizer as it was"):
            into.load(tmp_path / f"{number}", params=False, strict=False)
        with pytest.raises(ValueError, match=r"(master|average|slow)/w: expected .*, got"):
            into.load(tmp_path / f"{number}", params=False, hyper=False)
        assert all_bits(into) == before


def test_another_average_is_refused_by_a_checkpoint(tmp_path):
    rv.SGD(tree(), lr=0.1, average=rv.EMA(0.9)).save(tmp_path / "run")
    other = rv.SGD(tree(), lr=0.1, average=rv.EMA(0.8))
    with pytest.raises(ValueError, match=r"average: expected 'EMA\(decay=0\.8.*got 'EMA\(decay=0\.9"):
        other.load(tmp_path / "run")
    other.load(tmp_path / "run", hyper=False)


def test_names_of_what_is_kept_are_no_rules_nor_states_beside_which_they_stand():
    assert not RULES.keys() & set(rv._core.KEPT)
    states = {state for rule, of in RULES.items() for state in of["states"] if rule != "asgd"}
    assert not states & set(rv._core.KEPT)


def test_a_trial_of_rates_leaves_no_trace():
    params = half_tree()
    opt = run(rv.SGD(params, lr=0.1, lookahead=rv.Lookahead(2), average=rv.SWA(), master="float32"), 0, 3, half_tree)
    params["w"][0] = 2  # not the rounding of its copy
    opt.state_dict()
    before = all_bits(opt)
    rv.lr_range_test(lambda p: (1.0, half_tree(5)), params, opt, lr_min=1e-3, lr_max=1.0, steps=5)
    assert all_bits(opt) == before


# What is wrong.


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: rv.EMA(1.0), ValueError, r"decay: expected a number in \[0, 1\), got 1\.0"),
        (lambda: rv.EMA(float("nan")), ValueError, "decay: "),
        (lambda: rv.EMA("0.9"), TypeError, "decay: expected a number, got '0.9'"),
        (lambda: rv.EMA(every=0), ValueError, "every: expected a count of updates, at least 1, got 0"),
        (lambda: rv.SWA(start=-1), ValueError, "start: expected a count of updates >= 0, got -1"),
        (lambda: rv.SWA(every=1.5), TypeError, r"every: expected a whole number, got 1\.5"),
        (lambda: rv.Lookahead(0), ValueError, "k: expected a count of updates, at least 1, got 0"),
        (lambda: rv.Lookahead(alpha=0.0), ValueError, r"alpha: expected a number in \(0, 1\], got 0\.0"),
        (lambda: rv.Lookahead(alpha=1.1), ValueError, "alpha: "),
        (lambda: rv.SGD(np.ones(1), lr=0.1, average=0.9), TypeError, r"average: expected a ravine\.EMA"),
        (lambda: rv.SGD(np.ones(1), lr=0.1, lookahead=5), TypeError, r"lookahead: expected a ravine\.Lookahead"),
        (lambda: rv.SGD(np.ones(1), lr=0.1, groups=[("*", {"average": None})]), TypeError, "average"),
        (lambda: rv.SGD(np.ones(1), lr=0.1, averages=rv.EMA()), TypeError, "did you mean 'average'"),
    ],
)
def test_what_cannot_be_honoured_is_refused_at_construction(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("name", ["master", "average", "slow"])
def test_a_gradient_over_what_is_kept_is_refused(name):
    opt = rv.SGD({"w": np.ones(4, F16)}, lr=0.1, **AFTER)
    kept = opt._engine.kept[0][name]
    with pytest.raises(ValueError, match=r"grads\['w'\]: shares memory with parameter 'w' or its states"):
        opt.step({"w": kept.view(F16)[:4]})


def test_no_memory_for_what_is_kept_changes_nothing(monkeypatch):
    def refuse(shape, dtype):
        raise MemoryError

    monkeypatch.setattr(rv.backends.cpu, "zeros", refuse)
    w = np.ones(3)
    with pytest.raises(MemoryError):
        rv.SGD(w, lr=0.1, average=rv.EMA())
    assert (w == 1).all()


def test_the_formula_tells_what_follows():
    text = rv.SGD(np.ones(1), lr=0.5, lookahead=rv.Lookahead(3, 0.25), average=rv.EMA(0.9, start=5, every=2)).formula()
    assert text.splitlines() == [
        "w ← w − γ·g",
        "w ← s + 0.25·(w − s), s ← w   every 3 updates",
        "a ← a + (w − a)·(1 − min(0.9, (1 + n)/(10 + n)))   point n, every 2 updates, from 5 on; a ← w at the first",
        "γ = 0.5",
    ]
    assert "(w − a)/n   point n; a ← w at the first" in rv.SGD(np.ones(1), lr=0.5, average=rv.SWA()).formula()


# On a device.


def test_all_that_follows_on_a_device_is_that_of_the_cpu(gpu, gpu_device):
    here, there = half_tree() | {"x": gentle(33, F32)}, None
    there = rv.trees.map(gpu.asarray, here)
    options = {"lr": 0.01, "nonfinite": "skip", **AFTER}
    a, b = rv.AdamW(here, **options), rv.AdamW(there, **options)
    for step in range(8):
        g = half_tree(step) | {"x": gentle(33, F32, step) if step != 3 else None}
        if step == 5:
            g["w"][0, 0] = np.nan
        if step == 6:
            here["w"][0] = there["w"][0] = 3
        a.step(g)
        if launches := getattr(gpu_device, "launches", None):
            launches.clear()
        b.step(rv.trees.map(lambda x: None if x is None else gpu.asarray(x), g))
        if launches is not None:
            assert [name for name in launches if name != "poke"] == ["measure", "judge", "step"]
        states = b.state_dict()["states"]
        for name, arrays in a.state_dict()["states"].items():
            for kind, array in arrays.items():
                assert_same_bits(states[name][kind].get(), array, f"{kind} of {name}, step {step}")
        with b.averaged_parameters():
            for x, y in zip(*(rv.trees.leaves(of).values() for of in (there, a.averages())), strict=True):
                assert_same_bits(x.get(), y)
        for x, y in zip(*(rv.trees.leaves(of).values() for of in (there, here)), strict=True):
            assert_same_bits(x.get(), y)


def test_a_device_goes_on_with_a_file_of_the_cpu(gpu, tmp_path):
    a = run(rv.AdamW(half_tree(), lr=0.01, **AFTER), 0, 4, half_tree)
    a.save(tmp_path / "run", params=False)
    there = rv.trees.map(gpu.asarray, half_tree(9))
    b = rv.AdamW(there, lr=0.01, **AFTER)
    b.load(tmp_path / "run")
    for opt, put in ((a, np.asarray), (b, gpu.asarray)):
        opt.step(rv.trees.map(put, half_tree(50)))
    for x, y in zip(rv.trees.leaves(there).values(), a._engine.parameters, strict=True):
        assert_same_bits(x.get(), y)
