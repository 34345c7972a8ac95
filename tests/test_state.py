"""The state of a run: plain dicts, matched by name, checked as a whole before anything is loaded."""

import io
import itertools
import json
import pickle
from functools import partial

import numpy as np
import pytest

import ravine as rv

OPTIMIZERS = {
    "sgd": partial(rv.SGD, lr=0.1),
    "momentum": partial(rv.SGD, lr=0.1, momentum=0.9, dampening=0.5),
    "nesterov": partial(rv.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "velocity": partial(rv.SGD, lr=0.1, momentum=0.9, form="velocity"),
    "velocity_nesterov": partial(rv.SGD, lr=0.1, momentum=0.9, form="velocity", nesterov=True),
    "velocity_nesterov_chainer": partial(rv.SGD, lr=0.1, momentum=0.9, form="velocity", nesterov="chainer"),
    "heavy_ball": partial(rv.SGD, lr=0.1, momentum=0.9, form="heavy_ball"),
    "adagrad": partial(rv.Adagrad, lr=0.1),
    "adagrad_mean": partial(rv.Adagrad, lr=0.1, accumulate="mean"),
    "rmsprop": partial(rv.RMSprop, lr=0.1, first="square"),
    "rmsprop_centered": partial(rv.RMSprop, lr=0.1, centered=True),
    "rmsprop_momentum": partial(rv.RMSprop, lr=0.1, momentum=0.9),
    "rmsprop_centered_momentum": partial(rv.RMSprop, lr=0.1, centered=True, momentum=0.9),
    "rmsprop_momentum_before": partial(rv.RMSprop, lr=0.1, momentum_before=0.9),
    "adam": partial(rv.Adam, lr=0.1),
    "adam_amsgrad": partial(rv.Adam, lr=0.1, amsgrad=True),
    "lion": partial(rv.Lion, lr=0.1),
    "sign_sgd": partial(rv.SignSGD, lr=0.1),
    "signum": partial(rv.Signum, lr=0.1),
    "adamax": partial(rv.Adamax, lr=0.1),
    "adadelta": partial(rv.Adadelta, lr=0.1),
    "nadam": partial(rv.NAdam, lr=0.1),
    "radam": partial(rv.RAdam, lr=0.1),
    "rprop": partial(rv.Rprop, lr=0.1),
    "adabelief": partial(rv.AdaBelief, lr=0.1),
    "yogi": partial(rv.Yogi, lr=0.1),
    "ademamix": partial(rv.AdEMAMix, lr=0.1),
    "adopt": partial(rv.ADOPT, lr=0.1),
    "adan": partial(rv.Adan, lr=0.1),
    "asgd": partial(rv.ASGD, lr=0.1, t0=1.0),
    "madgrad": partial(rv.MADGRAD, lr=0.1),
    "schedule_free_sgd": partial(rv.ScheduleFreeSGD, lr=0.1),
    "schedule_free_adamw": partial(rv.ScheduleFreeAdamW, lr=0.1),
    "lars": partial(rv.LARS, lr=0.1, trust_coefficient=0.5),
    "lamb": partial(rv.LAMB, lr=0.1),
    "novograd": partial(rv.NovoGrad, lr=0.1),
}

every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def tree(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "a": rng.standard_normal((3, 4)),
        "b": [rng.standard_normal(5).astype(np.float32), rng.standard_normal(2).astype(np.float16)],
    }


def run(opt, first, last):
    for t in range(first, last):
        grads = tree(t)
        if t % 3 == 2:
            grads["a"] = None  # so that the two counters differ
        opt.step(grads)
    return opt


def bits(opt):
    arrays = [*opt._engine.parameters, *(state for states in opt._engine.states for state in states)]
    return [a.tobytes() for a in arrays], (opt.steps, opt._engine.updates)


def test_every_rule_is_in_the_table():
    assert set(OPTIMIZERS) == set(rv._core.rules())


@every_optimizer
def test_a_run_goes_on_bit_for_bit_from_its_state(make):
    whole = run(make(tree()), 1, 11)
    half = run(make(tree()), 1, 5)
    params = rv.trees.map(np.copy, tree())
    for own, saved in zip(rv.trees.leaves(params).values(), half._engine.parameters, strict=True):
        own[...] = saved
    resumed = make(params)
    resumed.load_state_dict(half.state_dict())
    assert bits(resumed) == bits(half)
    assert bits(run(resumed, 5, 11)) == bits(whole)


def plain(value):
    if isinstance(value, dict):
        return all(type(key) is str and plain(item) for key, item in value.items())
    return type(value) in (int, float, str, np.ndarray)


@every_optimizer
def test_a_state_is_plain_dicts_of_arrays_and_numbers(make):
    state = run(make(tree()), 1, 4).state_dict()
    assert type(state) is dict
    assert plain(state)
    assert (state["step"], state["updates"]) == (3, {"a": 2, "b.0": 3, "b.1": 3})
    rule = rv._core.rules()[state["rule"]]
    assert {name: list(states) for name, states in state["states"].items()} == {
        name: list(rule["states"]) for name in state["updates"]
    }


@every_optimizer
def test_a_state_survives_json_and_npz_and_pickle(make):
    opt = run(make(tree()), 1, 4)
    state = opt.state_dict()
    file = io.BytesIO()
    flat = {f"{name}/{kind}": array for name, arrays in state["states"].items() for kind, array in arrays.items()}
    np.savez(file, **flat)
    text = json.dumps({key: value for key, value in state.items() if key != "states"})
    file.seek(0)
    loaded = json.loads(text) | {"states": {name: {} for name in state["states"]}}
    with np.load(file) as arrays:
        for key in arrays.files:
            name, kind = key.split("/")
            loaded["states"][name][kind] = arrays[key]
    for again in (loaded, pickle.loads(pickle.dumps(state))):
        other = make(rv.trees.map(np.zeros_like, tree()))
        other.load_state_dict(again)
        np.testing.assert_equal(other.state_dict(), state)


def test_a_state_is_a_copy():
    params = {"w": np.ones(2)}
    opt = rv.Adam(params)
    opt.step({"w": np.ones(2)})
    state = opt.state_dict()
    kept = pickle.dumps(state)
    opt.step({"w": np.ones(2)})
    assert pickle.dumps(state) == kept
    state["states"]["w"]["m"][...] = 7
    assert (opt.state_dict()["states"]["w"]["m"] != 7).all()


def test_a_loaded_state_is_copied_too():
    one, two = rv.Adam(np.zeros(2)), rv.Adam(np.zeros(2))
    one.step(np.ones(2))
    state = one.state_dict()
    two.load_state_dict(state)
    two.step(np.ones(2))
    np.testing.assert_equal(state, one.state_dict())


def test_states_are_matched_by_name_not_by_order():
    one = rv.Adam({"a": np.zeros(2), "b": [np.zeros(2)]})
    one.step({"a": np.full(2, 1.0), "b": [np.full(2, 2.0)]})
    two = rv.Adam({"b": [np.zeros(2)], "a": np.zeros(2)})
    two.load_state_dict(one.state_dict())
    assert list(two.state_dict()["states"]) == ["b.0", "a"]
    np.testing.assert_equal(two.state_dict(), one.state_dict())


def test_the_state_of_strided_parameters_fits_contiguous_ones():
    one = rv.Adam([np.asfortranarray(np.ones((3, 4)))])
    one.step([np.arange(12.0).reshape(3, 4)])
    two = rv.Adam([np.ones((3, 4))])
    two.load_state_dict(one.state_dict())
    np.testing.assert_equal(two.state_dict(), one.state_dict())


def test_hyperparameters_stay_those_of_the_optimizer_that_loads():
    params = {"w": np.zeros(2)}
    old = rv.SGD({"w": np.zeros(2)}, lr=0.5, momentum=0.5)
    old.step({"w": np.ones(2)})
    new = rv.SGD(params, lr=0.25, momentum=0.0625, groups=[("w", {"weight_decay": 0.0})])
    with pytest.raises(ValueError, match="rule"):
        rv.SGD({"w": np.zeros(2)}, lr=0.5).load_state_dict(old.state_dict())
    new.load_state_dict(old.state_dict())
    assert (new.lr, new.steps) == (0.25, 1)
    new.step({"w": np.ones(2)})
    np.testing.assert_array_equal(params["w"], -0.25 * (0.0625 * 1 + 1))


def test_a_schedule_goes_on_where_the_run_was():
    seen = []
    old, new = rv.SGD(np.zeros(1), lr=0.5), rv.SGD(np.zeros(1), lr=lambda t: seen.append(t) or 0.5 / (t + 1))
    for _ in range(3):
        old.step(np.ones(1))
    new.load_state_dict(old.state_dict())
    assert new.step(np.ones(1)).lr == 0.5 / 4
    assert seen[-1] == 3


def test_lr_after_loading_is_not_that_of_the_beginning():
    def lr(t):
        return 0.5 / (t + 1)

    old, new = rv.SGD(np.zeros(1), lr=lr), rv.SGD(np.zeros(1), lr=lr)
    for _ in range(4):
        old.step(np.ones(1))
    new.load_state_dict(old.state_dict())
    assert new.lr in (old.lr, lr(new.steps))


# What does not fit


def source():
    params = {"a": np.ones(2), "b": np.ones((2, 2)), "c": np.ones(3, np.float32)}
    opt = rv.Adam(params)
    opt.step(params | {"a": np.full(2, 2.0), "b": np.ones((2, 2)) * 3, "c": np.ones(3, np.float32) * 4})
    return opt.state_dict()


def changed(state, *path, value):
    """A copy of nested dicts with one entry set, or removed if the value is ``...``."""
    state = dict(state)
    if len(path) > 1:
        state[path[0]] = changed(state[path[0]], *path[1:], value=value)
    elif value is ...:
        del state[path[0]]
    else:
        state[path[0]] = value
    return state


WRONG = {
    "rule": (("rule",), "lion", ["rule", "'adam'", "'lion'"]),
    "format": (("format",), 2, ["format", "1", "2"]),
    "no_step": (("step",), ..., ["missing", "step"]),
    "no_states": (("states",), ..., ["missing", "states"]),
    "missing_name": (("states", "a"), ..., ["missing", "'a'"]),
    "extra_name": (("states", "z"), {}, ["unknown", "'z'"]),
    "missing_kind": (("states", "a", "v"), ..., ["states['a']['v']", "(2,)", "float64"]),
    "shape": (("states", "b", "m"), np.zeros((4,)), ["states['b']['m']", "(2, 2)", "(4,)"]),
    "broadcastable_shape": (("states", "b", "m"), np.zeros((1, 2)), ["states['b']['m']", "(2, 2)", "(1, 2)"]),
    "dtype": (("states", "c", "v"), np.zeros(3), ["states['c']['v']", "float32", "float64"]),
    "scalar": (("states", "a", "m"), 0.0, ["states['a']['m']", "(2,)"]),
    "no_updates": (("updates", "b"), ..., ["updates", "'b'"]),
    "extra_updates": (("updates", "z"), 3, ["updates", "'z'"]),
    "negative_step": (("step",), -1, ["step", "-1"]),
    "text_step": (("step",), "seven", ["step", "seven"]),
    "nan_step": (("step",), float("nan"), ["step", "nan"]),
    "fraction_step": (("step",), 1.5, ["step", "1.5"]),
    "negative_updates": (("updates", "a"), -3, ["updates", "'a'", "-3"]),
    "none_updates": (("updates", "a"), None, ["updates", "'a'", "None"]),
    "states_of_a_parameter": (("states", "a"), [np.zeros(2), np.zeros(2)], ["states['a']"]),
}


@pytest.mark.parametrize("path, value, words", WRONG.values(), ids=WRONG)
def test_a_state_that_does_not_fit_is_refused_and_nothing_is_loaded(path, value, words):
    opt = rv.Adam({"a": np.ones(2), "b": np.ones((2, 2)), "c": np.ones(3, np.float32)})
    before = bits(opt)
    with pytest.raises((TypeError, ValueError)) as caught:
        opt.load_state_dict(changed(source(), *path, value=value))
    assert bits(opt) == before
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def test_all_differences_are_listed():
    opt = rv.Adam({"a": np.ones(3), "c": np.ones(3), "d": np.ones(1), "e": np.ones(1)})
    with pytest.raises(ValueError, match=r"state: .* Nothing was loaded") as caught:
        opt.load_state_dict(source() | {"format": 3})
    expected = ["format", "['d', 'e']", "['b']", "['a']['m']", "['a']['v']", "['c']['m']", "['c']['v']", "(3,) float64"]
    assert [word for word in expected if word not in str(caught.value)] == []


def test_another_rule_and_other_names_are_listed_together():
    opt = rv.Lion({"a": np.ones(2), "d": np.ones(1)})
    with pytest.raises(ValueError, match="rule") as caught:
        opt.load_state_dict(source())
    assert [word for word in ("'lion'", "'adam'", "'d'", "'b', 'c'") if word not in str(caught.value)] == []


@pytest.mark.parametrize("state", [{}, {"step": 3}])
def test_what_is_no_state_is_refused(state):
    opt = rv.Adam(np.ones(2))
    with pytest.raises(ValueError, match=r"expected what state_dict\(\) returned"):
        opt.load_state_dict(state)


def test_the_states_of_small_parameters_stand_in_lines_apart():
    sizes = [0, 1, 15, 16, 17, 1000, 5000, 70_000, 300_000, 3, 40_000, 200_000] * 3
    params = [np.ones(size, np.float32 if size % 2 else np.float64) for size in sizes]
    states = [state for states in rv.Adam(params)._engine.states for state in states]
    assert all(state.ctypes.data % 64 == 0 for state in states if 0 < state.nbytes <= 1 << 20)
    assert all(state.flags.c_contiguous and not state.any() for state in states)
    ends = sorted((state.ctypes.data, state.ctypes.data + state.nbytes) for state in states if state.size)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ends))


def test_first_moments_of_small_parameters_stand_behind_first_moments():
    states = rv.Adam([np.ones(100, np.float32) for _ in range(50)])._engine.states
    for moments in zip(*states, strict=True):
        places = [moment.ctypes.data for moment in moments[1:]]  # the first stands alone
        assert np.diff(places).tolist() == [448] * 48  # 400 bytes, and up to a whole cache line


@pytest.mark.parametrize("states", [None, "bfloat16"])
@pytest.mark.parametrize("size", [300, 40_000, 3_000_000])
def test_no_state_begins_where_another_does_in_a_page(size, states):
    opt = rv.AdEMAMix(np.zeros(size, np.float32), lr=0.1, states=states)
    places = [state.ctypes.data % 4096 for state in opt._engine.states[0]]
    assert len(set(places)) == 3
    assert all(place % 64 == 0 for place in places)
