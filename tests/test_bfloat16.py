"""bfloat16 parameters that lose nothing, having remainders, or nothing on average, being rounded at random."""

import ml_dtypes
import numpy as np
import pytest

import ravine as rv
from tests import codes, specification
from tests.conftest import RULES, assert_same_bits, engine, hyper_sets, instruction_sets, zero_states
from tests.test_bits import finite, numbers
from tests.test_precision import RULES_WITH
from tests.test_rules import CONFIGURATIONS, configuration

BF16, F16, F32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32)
HYPER = {rule: next(hyper_sets(rule)) for rule in RULES}
#: k and every differ, and so does what each of seven updates does.
FOLLOWED = {"lookahead": rv.Lookahead(k=3, alpha=0.3), "average": rv.EMA(decay=0.4, start=1, every=2)}
LENGTHS = (1, 255, 256, 257, 600)

every_rule = pytest.mark.parametrize("rule", RULES)


def gentle(shape, dtype=BF16, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32).astype(dtype)


def tree(seed=0):
    shapes = {"scalar": (), "empty": (0, 3)}
    rest = {name: np.array(gentle(shape, BF16, seed + 3)) for name, shape in shapes.items()}
    return {"w": gentle((25, 31), BF16, seed), "b": [gentle(4, BF16, seed + 2)], **rest}


def run(opt, first, last, make=tree):
    for seed in range(first, last):
        opt.step(make(100 + 10 * seed))
    return opt


def all_bits(opt):
    arrays = [array for own in opt._arrays().values() for array in own.values()]
    return [array.tobytes() for array in (*opt._engine.parameters, *arrays)], opt.steps, opt._engine.updates


def exact(parameter, remainder):
    return codes.joined(np.asarray(parameter, order="C").view(np.uint16), remainder)


# With remainders.


@every_rule
@pytest.mark.parametrize("states", [None, "8bit"])
def test_a_split_parameter_follows_the_specification_of_its_exact_number(rule, states):
    kinds = list(RULES[rule]["states"].values())
    full = states is None or rule not in RULES_WITH
    make = numbers if full else finite
    w = make(600, BF16)
    at, kept = w.astype(F32), {name: np.zeros(600, F32) for name in ("average", "slow", "average_rest")}
    made = engine(rule, w, HYPER[rule], weight_decay=0.13, states=states, after={**FOLLOWED, "master": "split"})
    arrays = zero_states(rule, (600,), F32, states=states)
    for t in range(1, 8):
        g = make(600, BF16, t)
        if t == 4:  # from outside
            changed = make(20, BF16, 50)
            w[:20] = changed
            at[:20] = codes.joined(changed.view(np.uint16), made.kept[0]["remainder"][:20])
        made.step(g)
        read = arrays if full else codes.load(kinds, arrays, states)
        with np.errstate(all="ignore"):
            at, new = specification.step(
                rule, at, g, read, t=t, hyper=HYPER[rule], weight_decay=0.13, after=FOLLOWED, kept=kept
            )
        arrays = new if full else codes.store(kinds, new, states, t - 1, 0)
        upper, lower = codes.split(at)
        assert_same_bits(w, upper.view(BF16), t)
        assert_same_bits(made.kept[0]["remainder"], lower, t)
        for name, array in kept.items():
            assert_same_bits(made.kept[0][name], array, f"{name} after {t}")
        for got, state in zip(made.states[0], arrays, strict=True):
            assert_same_bits(got, state, t)


@pytest.mark.parametrize("row", CONFIGURATIONS, ids=configuration)
def test_a_split_parameter_goes_where_one_in_float32_goes(row):
    cls, arguments, _, _ = row
    options = {"lr": 0.03, "weight_decay": 0.1, "clip_norm": 3.0, **arguments}
    compact = cls(np.ones(1), **options)._rule in RULES_WITH
    for states in (None, "bfloat16") if compact else (None,):
        w = gentle(603)
        wide = w.astype(F32)
        opt = cls({"w": w}, master="split", states=states, **options)
        other = cls({"w": wide}, states=states, **options)
        for seed in range(1, 6):
            g = gentle(603, BF16, seed)
            opt.step({"w": g})
            other.step({"w": g})
            assert_same_bits(exact(w, opt.state_dict()["states"]["w"]["remainder"]), wide)


@pytest.mark.parametrize(
    "make",
    [lambda w, **o: rv.Muon(w, lr=0.02, **o), lambda w, **o: rv.Adafactor(w, lr=0.02, scale_parameter=False, **o)],
    ids=["Muon", "Adafactor"],
)
def test_so_does_one_with_a_rule_of_whole_matrices(make):
    w = gentle((12, 20))
    wide = w.astype(F32)
    opt, other = make(w, master="split", weight_decay=0.3), make(wide, weight_decay=0.3)
    for seed in range(1, 5):
        g = gentle((12, 20), BF16, seed)
        opt.step(g)
        other.step(g)
        assert_same_bits(exact(w, opt.state_dict()["states"]["params"]["remainder"]), wide)


def test_updates_below_the_last_bit_add_up():
    w = np.ones(3, BF16)
    opt = rv.SGD(w, lr=2.0**-13, master="split")
    for _ in range(4096):
        opt.step(np.ones(3, BF16))
    assert (w == 0.5).all()


def test_ties_are_rounded_away_from_0():
    w = np.array([1, -1, 1.0078125, 1], BF16)
    rv.SGD(w, lr=1.0, master="split").step(-np.array([2.0**-8, -(2.0**-8), 2.0**-8, 2.0**-9], BF16))
    np.testing.assert_array_equal(w.astype(F32), [1.0078125, -1.0078125, 1.015625, 1])


def test_an_element_changed_from_outside_counts_as_a_number_that_is_rounded_to_it():
    n = 300
    w = gentle(n)
    opt = rv.SGD(w, lr=1e-3, master="split")
    opt.step(gentle(n, BF16, 1))
    written = np.array([0, -0.0, np.inf, -np.inf, 2, -3, 1e-40, 3e38], np.float32).astype(BF16)
    remainder = opt.state_dict()["states"]["params"]["remainder"]
    assert (remainder < 0).any()
    assert (remainder > 0).any()
    for value in written:
        w[:] = value
        opt.step(np.zeros(n, BF16))
        assert_same_bits(w, np.full(n, value, BF16))
    w[:] = np.nan
    opt.step(np.zeros(n, BF16))
    assert np.isnan(w.astype(F32)).all()
    assert not opt.state_dict()["states"]["params"]["remainder"].any()


@pytest.mark.parametrize("options", [{}, {"states": "8bit"}, FOLLOWED], ids=["plain", "8bit", "followed"])
def test_a_split_run_goes_on_bit_for_bit(options, tmp_path):
    def make(seed=0):
        return rv.AdamW(tree(seed), lr=0.01, master="split", **options)

    whole, half = run(make(), 0, 7), run(make(), 0, 4)
    half.save(tmp_path / "run")
    by_file, by_state = make(77), rv.AdamW(rv.trees.map(np.copy, half._params), lr=0.01, master="split", **options)
    by_file.load(tmp_path / "run")
    by_state.load_state_dict(half.state_dict())
    for resumed in (by_file, by_state):
        assert all_bits(resumed) == all_bits(half)
        assert all_bits(run(resumed, 4, 7)) == all_bits(whole)


def test_a_file_has_the_remainders_as_integers(tmp_path):
    from safetensors import safe_open

    run(rv.AdamW(tree(), master="split"), 0, 1).save(tmp_path / "run")
    with safe_open(tmp_path / "run", "numpy") as file:
        assert file.get_slice("remainder/w").get_dtype() == "I16"
        assert file.get_slice("params/w").get_dtype() == "BF16"


def test_exact_copies_become_remainders_and_the_other_way(tmp_path):
    split, copied = (run(rv.AdamW(tree(), lr=0.01, master=master), 0, 5) for master in ("split", "float32"))
    run_on = run(rv.AdamW(tree(), lr=0.01, master="split"), 0, 8)
    for there, master in ((split, "float32"), (copied, "split")):
        # Exact copies bring their parameters with them, remainders do not.
        here = rv.AdamW(rv.trees.map(np.copy, split._params), lr=0.01, master=master)
        if there is copied:
            rv.trees.map(lambda w: w.fill(3), here._params)
        here.load_state_dict(there.state_dict())
        if there is copied:
            assert all_bits(here) == all_bits(split)
        else:
            assert all_bits(here)[0][4:] == all_bits(copied)[0][4:]
        there.save(tmp_path / "run")
        with pytest.raises(ValueError, match=f"load it with master={there._master!r}, and pass the state_dict"):
            here.load(tmp_path / "run")
        run(here, 5, 8)
        for name, master in exact_of(here).items():
            assert_same_bits(master, exact_of(run_on)[name])


def test_any_copy_becomes_the_remainder_that_a_step_would_leave_and_is_read_as_a_step_reads_it():
    bits = [0x3F808000, 0xBF818000, 0x7F7FFFFF, 0x7F800000, 0x7FFFFFFF, 0xFF800001, 0x80000001, 0x00008000, 0x3F801234]
    master = np.array(bits, np.uint32).view(F32)
    opt = rv.SGD(np.ones(len(bits), BF16), 0.1, master="split")
    state = opt.state_dict()
    state["states"]["params"] = {"master": master}
    opt.load_state_dict(state)
    upper, lower = codes.split(master)
    assert_same_bits(opt._engine.parameters[0], upper.view(BF16))
    assert_same_bits(opt._engine.kept[0]["remainder"], lower)
    for value in (None, 0, -0.0, np.inf, np.nan):
        w = opt._engine.parameters[0]
        if value is not None:
            w[:] = value
        other = rv.SGD(w.copy(), 0.1, master="float32")
        other.load_state_dict(opt.state_dict())
        assert_same_bits(other.state_dict()["states"]["params"]["master"], exact(w, lower))


def exact_of(opt):
    """Give the exact parameters, however they are kept."""
    kept = zip(opt._engine.names, opt._engine.parameters, opt._engine.kept, strict=True)
    return {name: own["master"] if "master" in own else exact(w, own["remainder"]) for name, w, own in kept}


def test_what_is_no_copy_of_this_parameter_is_refused():
    copied = run(rv.AdamW(tree(), master="float32"), 0, 2)
    state = copied.state_dict()
    state["states"]["w"]["master"] = state["states"]["w"]["master"][:3]
    split = rv.AdamW(tree(), master="split")
    with pytest.raises(ValueError, match=r"states\['w'\]\['master'\]: expected nothing"):
        split.load_state_dict(state)
    half = {"w": np.ones(3, F16)}
    with pytest.raises(ValueError, match=r"states\['w'\]\['remainder'\]: expected nothing"):
        rv.SGD(half, 0.1, master="float32").load_state_dict(rv.SGD({"w": gentle(3)}, 0.1, master="split").state_dict())


def test_a_skipped_step_leaves_parameters_and_remainders():
    w = gentle(600)
    opt = rv.Adam({"w": w}, nonfinite="skip", master="split")
    opt.step({"w": gentle(600, BF16, 1)})
    before, bad = all_bits(opt), gentle(600, BF16, 2)
    bad[5] = np.inf
    assert opt.step({"w": bad}).skipped
    assert all_bits(opt) == before


def test_averages_in_a_split_parameters_place_leave_no_trace():
    opt = run(rv.AdamW(tree(), lr=0.1, master="split", average=rv.SWA()), 0, 3)
    before = all_bits(opt)
    with opt.averaged_parameters():
        assert all_bits(opt)[0] != before[0]
    assert all_bits(opt) == before


def test_accumulated_gradients_move_a_split_parameter_as_one_in_float32():
    w = gentle(600)
    wide = w.astype(F32)
    opt, other = rv.Adam(w, lr=0.01, master="split"), rv.Adam(wide, lr=0.01)
    for step in range(3):
        for part in range(2):
            opt.accumulate(gentle(600, BF16, 2 * step + part))
            other.accumulate(gentle(600, BF16, 2 * step + part))
        opt.step()
        other.step()
        assert_same_bits(exact(w, opt.state_dict()["states"]["params"]["remainder"]), wide)


def test_a_remainder_takes_two_bytes():
    opt = rv.SGD(np.ones(1000, BF16), 0.1, master="split")
    assert sum(array.nbytes for array in opt._arrays()["params"].values()) == 2000


def test_what_cannot_be_split_is_refused_at_once():
    for dtype in (np.float16, np.float32, np.float64):
        with pytest.raises(TypeError, match=r"params\['b'\]: master='split' is for bfloat16, got float"):
            rv.Adam({"a": gentle(3), "b": np.ones(3, dtype)}, master="split")
    with pytest.raises(ValueError, match="master: expected 'float32', 'split' or None, got 'halves'"):
        rv.Adam(gentle(3), master="halves")
    opt = rv.SGD(gentle((3, 2)), 0.1, master="split")
    with pytest.raises(ValueError, match="RowSparse: master would read and write every row"):
        opt.step(rv.RowSparse(np.array([1]), gentle((1, 2))))
    with pytest.raises(ValueError, match=r"grads: shares memory with parameter 'params' or its states"):
        opt.step(opt._engine.kept[0]["remainder"].view(BF16))
    assert opt.steps == 0


# Rounded at random.


@every_rule
@pytest.mark.parametrize("states", [None, "bfloat16"])
def test_a_parameter_rounded_at_random_follows_the_specification(rule, states):
    kinds, full = list(RULES[rule]["states"].values()), states is None or rule not in RULES_WITH
    make = numbers if full else finite
    w, other = make(600, BF16), make(300, BF16, 1)
    at, kept = other.copy(), {name: np.zeros(300, F32) for name in ("average", "slow", "average_rest")}
    pipeline = {"weight_decay": 0.13, "after": FOLLOWED}
    made = engine(rule, [w, other], HYPER[rule], states=states, rounding="stochastic", **pipeline)
    arrays, t = zero_states(rule, (300,), F32, states=states), 0
    for step in range(6):
        g = make(300, BF16, step)
        made.step([make(600, BF16, step), g if step != 2 else None])
        if step == 2:
            continue
        t += 1
        read = arrays if full else codes.load(kinds, arrays, states)
        with np.errstate(all="ignore"):
            new, numbers_of = specification.step(
                rule, at.astype(F32), g, read, t=t, hyper=HYPER[rule], kept=kept, **pipeline
            )
        arrays = numbers_of if full else codes.store(kinds, numbers_of, states, step, 1)
        at = codes.parameter_to_bfloat16(new, step, 1).view(BF16)
        assert_same_bits(other, at, step)
        for name, array in kept.items():
            assert_same_bits(made.kept[1][name], array, f"{name} after {step}")
        for got, state in zip(made.states[1], arrays, strict=True):
            assert_same_bits(got, state, step)


@pytest.mark.parametrize(
    "options",
    [
        {"after": {**FOLLOWED, "master": "split"}},
        {"rounding": "stochastic"},
        {"rounding": "stochastic", "states": "8bit"},
    ],
    ids=["split", "stochastic", "stochastic, 8bit"],
)
def test_bits_are_the_same_for_any_threads_instructions_and_strides(options):
    n = 3 * 8192 + 77
    params = [numbers(n, BF16), *(numbers(k, BF16, k) for k in LENGTHS)]
    gradients = [[numbers(w.shape, BF16, 9 + seed) for w in params] for seed in range(3)]

    def stepped(params):
        made = engine("adam", params, HYPER["adam"], **options)
        for of_step in gradients:
            made.step(of_step)
        kept = [array for own in made.kept or () for array in own.values()]
        return [*map(np.ascontiguousarray, params), *kept, *(array for own in made.states for array in own)]

    expected = stepped([w.copy() for w in params])
    for threads in (1, 2, 3):
        rv.set_num_threads(threads)
        for level in instruction_sets():
            rv._core.set_simd(level)
            strided = np.zeros((n, 3), BF16)[::-1, 1]
            strided[:] = params[0]
            for got, right in zip(stepped([strided, *(w.copy() for w in params[1:])]), expected, strict=True):
                assert_same_bits(got, right, f"{threads} {level}")


@pytest.mark.parametrize("share", [0.0, 2.0**-10, 0.03, 0.25, 0.5, 0.9])
def test_a_step_is_right_on_average(share):
    """The new parameter lies between two neighbours; so many are the upper one as it is near to that."""
    n, last_bit = 1 << 16, 2.0**-7
    w = np.ones(n, BF16)
    opt = rv.SGD(w, lr=1.0, rounding="stochastic")
    opt.step(np.full(n, -share * last_bit, BF16))
    exact = float(np.float32(1) - np.full(1, -share * last_bit, BF16).astype(F32)[0])
    got = w.astype(np.float64)
    assert set(got) <= {1.0, 1.0 + last_bit}
    assert abs(got.mean() - exact) <= 5 * last_bit * np.sqrt(share * (1 - share) / n)


def test_decay_is_right_on_average_where_a_step_is_less_than_a_hundredth_of_the_last_bit():
    n, steps = 1 << 16, 1000
    w, nearest = np.ones(n, BF16), np.ones(n, BF16)
    for array, rounding in ((w, "stochastic"), (nearest, "nearest")):
        opt = rv.SGD(array, lr=1.0, weight_decay=1e-5, rounding=rounding)
        for _ in range(steps):
            opt.step(np.zeros(n, BF16))
    assert (nearest == 1).all()
    assert abs(w.astype(np.float64).mean() / (1 - 1e-5) ** steps - 1) < 0.00015


def test_a_parameter_and_its_states_err_independently():
    n = 1 << 15
    rng = np.random.default_rng(0)
    w, g = np.ones(n, BF16), rng.uniform(1, 2, n).astype(BF16)
    opt = rv.SGD(w, lr=0.0123, momentum=0.87, rounding="stochastic", states="bfloat16")
    opt.step(g)
    before, m = w.astype(F32), codes.from_bfloat16(opt._states()["params"]["b"])
    opt.step(g)
    exact = np.float32(0.87) * m + g.astype(F32)
    of_state = codes.from_bfloat16(opt._states()["params"]["b"]) - exact
    of_parameter = w.astype(F32) - (before - np.float32(0.0123) * exact)
    assert np.std(of_state) > 0 < np.std(of_parameter)
    assert abs(np.corrcoef(of_state, of_parameter)[0, 1]) < 5 / np.sqrt(n)


@pytest.mark.parametrize(
    "make",
    [lambda w, **o: rv.Muon(w, lr=0.02, **o), lambda w, **o: rv.Adafactor(w, lr=0.02, **o)],
    ids=["Muon", "Adafactor"],
)
def test_rules_of_whole_matrices_round_at_random_too(make):
    w = gentle((24, 20))
    opt = make(w, rounding="stochastic", weight_decay=0.3)
    for step in range(3):
        g, wide = gentle((24, 20), BF16, step + 1), w.astype(F32)
        other = make(wide, weight_decay=0.3)
        other.load_state_dict(opt.state_dict())
        other.step(g)
        opt.step(g)
        assert_same_bits(w, codes.parameter_to_bfloat16(wide, step, 0).view(BF16), step)


@pytest.mark.parametrize("options", [{}, {"states": "8bit"}, FOLLOWED], ids=["plain", "8bit", "followed"])
def test_a_run_with_chance_goes_on_bit_for_bit(options, tmp_path):
    def make(seed=0):
        return rv.AdamW(tree(seed), lr=0.01, rounding="stochastic", nonfinite="skip", **options)

    whole, half = run(make(), 0, 7), run(make(), 0, 4)
    before, bad = all_bits(half), tree(5)
    bad["w"][3, 3] = np.nan
    assert half.step(bad).skipped
    assert all_bits(half) == before
    half.save(tmp_path / "run")
    resumed = make(77)
    resumed.load(tmp_path / "run")
    assert all_bits(run(resumed, 4, 7)) == all_bits(whole)
    nearest = rv.AdamW(tree(), lr=0.01, nonfinite="skip", **options)
    with pytest.raises(ValueError, match="rounding: expected None, got 'stochastic'; make the optimizer as it was"):
        nearest.load(tmp_path / "run")


def test_what_cannot_be_rounded_at_random_is_refused_at_once():
    for dtype in (np.float16, np.float32, np.float64):
        with pytest.raises(TypeError, match=r"params\['b'\]: rounding='stochastic' is for bfloat16, got float"):
            rv.Adam({"a": gentle(3), "b": np.ones(3, dtype)}, rounding="stochastic")
    for master in ("float32", "split"):
        with pytest.raises(ValueError, match="rounding: 'stochastic' is for parameters without an exact copy"):
            rv.Adam(gentle(3), rounding="stochastic", master=master)
    with pytest.raises(ValueError, match="rounding: expected 'nearest' or 'stochastic', got 'up'"):
        rv.Adam(gentle(3), rounding="up")
    opt = rv.SGD(gentle((3, 2)), 0.1, rounding="stochastic")
    with pytest.raises(ValueError, match="RowSparse: rounding='stochastic' knows elements by their places"):
        opt.step(rv.RowSparse(np.array([1]), gentle((1, 2))))
    assert opt.steps == 0
