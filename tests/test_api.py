"""What a user writes: nestings, names, groups, schedules, what a step reports, what an optimizer says about itself."""

import itertools
import os
import subprocess
import sys
import textwrap
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import pytest

import ravine as rv
from tests.reference.rules import initial_state, pipeline_step


class Pair(NamedTuple):
    first: Any
    second: Any


def ones(n=2):
    return np.ones(n)


def names(opt):
    return list(opt.state_dict()["updates"])


# Nestings

NESTINGS = {
    "array": (ones(), ["params"]),
    "0d": (np.ones(()), ["params"]),
    "dict": ({"w": ones(), "b": ones()}, ["w", "b"]),
    "list": ([ones(), ones()], ["0", "1"]),
    "tuple": ((ones(), ones()), ["0", "1"]),
    "named_tuple": (Pair(ones(), {"w": ones()}), ["0", "1.w"]),
    "ordered_dict": (OrderedDict(b=ones(), a=ones()), ["b", "a"]),
    "int_keys": ({0: ones(), 7: {2: ones()}}, ["0", "7.2"]),
    "tuple_keys": ({(0, 1): ones()}, ["(0, 1)"]),
    "mixed": ({"a": [ones(), {"b": (ones(), ones())}], "c": ones()}, ["a.0", "a.1.b.0", "a.1.b.1", "c"]),
    "deep": ({"a": {"b": {"c": {"d": {"e": [[[ones()]]]}}}}}, ["a.b.c.d.e.0.0.0"]),
    "empty_inside": ({"a": {}, "b": [ones(), [], ()], "c": {"d": {}}, "e": ones()}, ["b.0", "e"]),
    "layers_without_parameters": ([{"w": ones()}, {}, {"w": ones()}], ["0.w", "2.w"]),
    "empty": ({}, []),
}


@pytest.mark.parametrize("params, expected", NESTINGS.values(), ids=NESTINGS)
def test_any_nesting_is_updated_in_place_under_dotted_names(params, expected):
    params = rv.trees.map(np.copy, params) if not isinstance(params, Pair) else params
    arrays = list(rv.trees.leaves(params).values()) if expected else []
    opt = rv.SGD(params, lr=0.5)
    grads = [np.full_like(a, i) for i, a in enumerate(arrays)]
    where = {id(a): g for a, g in zip(arrays, grads, strict=True)}

    def answer(tree):
        if isinstance(tree, dict):
            return {key: answer(item) for key, item in tree.items()}
        if isinstance(tree, list | tuple):
            return [answer(item) for item in tree]
        return where[id(tree)]

    opt.step(answer(params))
    assert names(opt) == expected == (list(rv.trees.leaves(params)) if expected else [])
    for i, a in enumerate(arrays):
        np.testing.assert_array_equal(a, np.full_like(a, 1 - 0.5 * i))


def test_gradients_are_matched_by_name_not_by_order():
    params = {"a": ones(), "b": ones()}
    rv.SGD(params, lr=1.0).step(OrderedDict(b=np.full(2, 5.0), a=np.zeros(2)))
    np.testing.assert_array_equal(params["a"], 1)
    np.testing.assert_array_equal(params["b"], -4)


@pytest.mark.parametrize("params", [{"a.b": ones(), "a": {"b": ones()}}, {1: ones(), "1": ones()}])
def test_two_parameters_of_one_name_are_refused(params):
    with pytest.raises(ValueError, match=r"params: two arrays are called '(a\.b|1)'; rename"):
        rv.SGD(params, lr=0.1)


def test_a_nesting_that_contains_itself_is_refused():
    params = {"w": ones()}
    params["self"] = params
    with pytest.raises(TypeError, match="contain itself"):
        rv.SGD(params, lr=0.1)


def test_trees_map_keeps_the_kinds_of_containers():
    tree = {"a": [1, (2, 3)], "b": Pair(4, {"c": 5}), "d": {}}
    doubled = rv.trees.map(lambda x: 2 * x, tree)
    assert doubled == {"a": [2, (4, 6)], "b": Pair(8, {"c": 10}), "d": {}}
    assert type(doubled["b"]) is Pair


def test_trees_map_refuses_other_nestings():
    for other in ({"b": 1}, [1], {"a": 1, "b": 1}):
        with pytest.raises(ValueError, match=r"trees\.map"):
            rv.trees.map(lambda x, y: x, {"a": 1}, other)


def test_sequential_networks_are_parameters_as_they_are():
    rng = np.random.default_rng(0)
    net = rv.nn.Sequential(rv.nn.Linear(4, 8, rng), rv.nn.ReLU(), rv.nn.Linear(8, 3, rng), rv.nn.Tanh())
    x, labels = rng.standard_normal((50, 4)).astype(np.float32), rng.integers(0, 3, 50)
    opt = rv.Adam(net.params, lr=0.05, groups=[("*.bias", {"weight_decay": 0.1})])
    assert names(opt) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    losses = []
    for _ in range(30):
        loss, dy = rv.nn.softmax_cross_entropy(net(x), labels)
        net.backward(dy)
        opt.step(net.grads)
        losses.append(loss)
    assert losses[-1] < 0.8 * losses[0]


# Groups


def layers():
    return {"hidden": {"w": ones(), "b": ones()}, "out": {"w": ones(), "b": ones()}}


def moves(opt, params, g=1.0):
    """How far each parameter goes in one step from gradients of g, by name."""
    before = {name: w.copy() for name, w in rv.trees.leaves(params).items()}
    opt.step(rv.trees.map(lambda w: np.full_like(w, g), params))
    return {name: float((before[name] - w)[0]) for name, w in rv.trees.leaves(params).items()}


def test_groups_match_dotted_names_and_later_ones_win():
    params = layers()
    groups = [("*.b", {"lr": 0.25}), ("hidden.*", {"lr": 0.5}), ("out.w", {"weight_decay": 1.0}), ("out.?", {})]
    assert moves(rv.SGD(params, lr=0.125, groups=groups), params) == {
        "hidden.w": 0.5,
        "hidden.b": 0.5,
        "out.w": 0.125 + 0.125,
        "out.b": 0.25,
    }


def test_groups_add_up_where_they_name_different_values():
    params = layers()
    groups = [("*.b", {"lr": 0.5}), ("out.*", {"l2": 3.0, "maximize": True})]
    # l2: g + 3·w = 4; ascending: −1 + 3 = 2.
    assert moves(rv.SGD(params, lr=0.25, groups=groups), params) == {
        "hidden.w": 0.25,
        "hidden.b": 0.5,
        "out.w": 0.25 * 2,
        "out.b": 0.5 * 2,
    }


def test_case_matters_and_stars_cross_dots():
    params = {"W": ones(), "w": ones(), "a": {"w": ones()}}
    opt = rv.SGD(params, lr=0.5, groups=[("*w", {"lr": 0.25})])
    assert moves(opt, params) == {"W": 0.5, "w": 0.25, "a.w": 0.25}


def test_a_single_array_is_called_params():
    w = ones()
    rv.SGD(w, lr=0.5, groups=[("params", {"lr": 1.0})]).step(ones())
    np.testing.assert_array_equal(w, 0)


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(ValueError, match=r"'\*\.bias' matches none of \['hidden\.w', 'hidden\.b'"):
        rv.SGD(layers(), lr=0.1, groups=[("*.bias", {"lr": 0.1})])


SHAPE_OVERRIDES = [
    (rv.Adam, {}, {"amsgrad": True}),
    (rv.RMSprop, {}, {"centered": True}),
    (rv.RMSprop, {}, {"first": "square"}),
    (rv.RMSprop, {}, {"momentum_before": 0.9}),
    (rv.SGD, {"lr": 0.1, "momentum": 0.9}, {"nesterov": True}),
    (rv.SGD, {"lr": 0.1, "momentum": 0.9}, {"form": "velocity"}),
    (rv.SGD, {"lr": 0.1, "momentum": 0.9, "form": "velocity"}, {"dampening": 0.5}),
    (rv.Adagrad, {}, {"accumulate": "mean"}),
    (rv.Adam, {}, {"clip_norm": 1.0}),
    (rv.Adam, {}, {"clip_value": 1.0}),
    (rv.Adam, {}, {"nonfinite": "skip"}),
    (rv.Adam, {}, {"groups": []}),
]


@pytest.mark.parametrize(
    "make, options, override", SHAPE_OVERRIDES, ids=lambda x: "-".join(x) if isinstance(x, dict) else None
)
def test_what_cannot_differ_between_groups_is_refused_in_a_group(make, options, override):
    with pytest.raises(TypeError, match=next(iter(override))):
        make(layers(), **options, groups=[("*.b", override)])


@pytest.mark.parametrize("name", ["betas", "eps", "lr", "weight_decay", "l2", "maximize", "bias_correction"])
def test_every_number_of_a_rule_can_differ_between_groups(name):
    value = {"betas": (0.5, 0.5), "maximize": True, "bias_correction": False}.get(name, 0.5)
    params, alone = layers(), ones()
    grouped = moves(rv.Adam(params, groups=[("out.w", {name: value})]), params)
    single = moves(rv.Adam(alone, **{name: value}), alone)
    plain = moves(rv.Adam(alone := ones()), alone)
    assert grouped == {"hidden.w": plain["params"], "hidden.b": plain["params"], "out.b": plain["params"]} | {
        "out.w": single["params"]
    }


def test_the_name_of_an_argument_is_its_name_in_groups():
    params = {"a": ones(), "b": ones()}
    opt = rv.RMSprop(params, lr=0.5, momentum_before=0.5, groups=[("b", {"momentum_before": 0.25})])
    assert "momentum_before=0.5" in repr(opt)
    with pytest.raises(TypeError, match="'momentum'"):
        rv.RMSprop(params, momentum_before=0.5, groups=[("b", {"momentum": 0.25})])


def test_momentum_in_a_group_alone_makes_the_rule_one_with_momentum():
    params = {"a": ones(), "b": ones()}
    opt = rv.SGD(params, lr=0.5, groups=[("b", {"momentum": 0.5})])
    assert moves(opt, params) == {"a": 0.5, "b": 0.5}
    assert moves(opt, params) == {"a": 0.5, "b": 0.75}


@pytest.mark.parametrize("kind", [list, tuple])
def test_torch_groups_work(kind):
    w, b, head = ones(), ones(), ones()
    groups = kind([{"params": [w, b], "lr": 0.5}, {"params": head, "momentum": 0.5}, {"params": {"x": ones()}}])
    opt = rv.SGD(groups, lr=0.25)
    assert names(opt) == ["0.0", "0.1", "1", "2.x"]
    for _ in range(2):
        opt.step([[ones(), ones()], ones(), {"x": ones()}])
    assert (w[0], b[0], head[0]) == (1 - 1.0, 1 - 1.0, 1 - 0.25 - 0.375)


def test_an_unknown_value_in_a_torch_group_is_refused():
    with pytest.raises(TypeError, match=r"unknown.*'lrr'.*did you mean 'lr'"):
        rv.SGD([{"params": ones(), "lrr": 0.5}], lr=0.25)


def test_a_group_of_ours_beside_torchs_later_wins():
    w, v = ones(), ones()
    opt = rv.SGD([{"params": [w], "lr": 0.5}, {"params": [v]}], lr=0.25, groups=[("*", {"weight_decay": 1.0})])
    opt.step([[np.zeros(2)], [np.zeros(2)]])
    assert (w[0], v[0]) == (0.5, 0.75)


def test_the_rate_reported_is_one_that_is_used():
    opt = rv.SGD([{"params": ones(), "lr": 0.5}], lr=0.25)
    assert opt.step([ones()]).lr == opt.lr == 0.5


# Schedules: any hyperparameter, at the number of steps already taken

SCHEDULED = [
    ("sgd", rv.SGD, {}, {"lr": [0.5, 0.1, 0.0]}),
    ("momentum", rv.SGD, {"lr": 0.1}, {"momentum": [0.5, 0.9, 0.0]}),
    ("momentum", rv.SGD, {"lr": 0.1, "momentum": 0.9}, {"dampening": [0.5, 0.1, 0.0]}),
    ("heavy_ball", rv.SGD, {"lr": 0.1, "form": "heavy_ball"}, {"momentum": [0.5, 0.9, 0.1]}),
    ("velocity", rv.SGD, {"form": "velocity", "momentum": 0.9}, {"lr": [0.5, 0.1, 0.2]}),
    ("adagrad", rv.Adagrad, {"lr": 0.1}, {"eps": [0.5, 0.1, 0.0]}),
    ("rmsprop", rv.RMSprop, {"lr": 0.1}, {"decay": [0.5, 0.1, 0.0]}),
    ("rmsprop_momentum", rv.RMSprop, {"lr": 0.1}, {"momentum": [0.5, 0.1, 0.0]}),
    ("rmsprop_momentum_before", rv.RMSprop, {"lr": 0.1}, {"momentum_before": [0.5, 0.1, 0.0]}),
    ("adam", rv.Adam, {}, {"lr": [0.5, 0.1, 0.0], "eps": [0.1, 0.5, 0.0]}),
    ("adam", rv.Adam, {}, {"beta1": [0.5, 0.1, 0.9]}),
    ("adam", rv.Adam, {}, {"beta1": [0.5, 0.1, 0.9], "beta2": [0.9, 0.5, 0.99]}),
    ("lion", rv.Lion, {"lr": 0.1}, {"beta2": [0.5, 0.1, 0.9]}),
    ("adadelta", rv.Adadelta, {"lr": 0.5}, {"rho": [0.5, 0.1, 0.9]}),
    ("ademamix", rv.AdEMAMix, {"lr": 0.1}, {"alpha": [0.0, 2.0, 5.0]}),
    ("adam", rv.Adam, {}, {"weight_decay": [0.5, 0.1, 0.0], "l2": [0.0, 0.5, 0.1]}),
]
DEFAULTS = {
    "sgd": {},
    "momentum": {"dampening": 0.0},
    "heavy_ball": {},
    "velocity": {},
    "adagrad": {},
    "rmsprop": {"decay": 0.99, "eps": 1e-8},
    "rmsprop_momentum": {"decay": 0.99, "eps": 1e-8},
    "rmsprop_momentum_before": {"decay": 0.99, "eps": 1e-8},
    "adam": {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    "lion": {"beta1": 0.9, "beta2": 0.99},
    "adadelta": {"eps": 1e-6},
    "ademamix": {"beta1": 0.9, "beta2": 0.999, "beta3": 0.9999, "eps": 1e-8},
}


@pytest.mark.parametrize("rule, make, options, lists", SCHEDULED, ids=[f"{r}-{'-'.join(s)}" for r, *_, s in SCHEDULED])
def test_any_hyperparameter_can_be_a_schedule(rule, make, options, lists):
    schedules = {name: values.__getitem__ for name, values in lists.items()}
    if betas := {name for name in schedules if name.startswith("beta")}:
        both = tuple(schedules.pop(name) if name in betas else DEFAULTS[rule][name] for name in ("beta1", "beta2"))
        # The reference knows the present β alone; tests/test_corrections.py has the product of those that were used.
        schedules |= {"betas": both} | ({"correction": "current"} if rule == "adam" else {})
    w = np.array([1.0, -2.0, 0.5])
    opt = make(w, **options, **schedules)
    fixed = DEFAULTS[rule] | {name: value for name, value in options.items() if name != "form"}
    expected, state = w.copy(), initial_state(rule, w)
    for t in range(3):
        g = np.array([0.3, -1.0, 2.0]) * (t + 1)
        hyper = fixed | {name.replace("momentum_before", "momentum"): values[t] for name, values in lists.items()}
        around = {name: hyper.pop(name) for name in ("weight_decay", "l2") if name in hyper}
        expected, state = pipeline_step(rule, expected, g, state, t + 1, hyper, **around)
        opt.step(g)
        np.testing.assert_allclose(w, expected, rtol=1e-13)


def test_groups_have_schedules_of_their_own():
    params = {"a": ones(), "b": ones(), "c": ones()}
    opt = rv.SGD(
        params, lr=lambda t: [1.0, 2.0][t], groups=[("b", {"lr": lambda t: [4.0, 8.0][t]}), ("c", {"lr": 16.0})]
    )
    assert moves(opt, params) == {"a": 1.0, "b": 4.0, "c": 16.0}
    assert moves(opt, params) == {"a": 2.0, "b": 8.0, "c": 16.0}


def test_a_skipped_step_does_not_advance_a_schedule():
    seen = []
    opt = rv.SGD(ones(), lr=lambda t: seen.append(t) or 0.5, nonfinite="skip")
    for g in (1.0, np.nan, np.inf, 1.0):
        opt.step(np.full(2, g))
    assert seen[-4:] == [0, 1, 1, 1]
    assert opt.steps == 2


@pytest.mark.parametrize("name", ["clip_norm", "clip_value"])
def test_limits_are_numbers_not_schedules(name):
    with pytest.raises(TypeError, match=name):
        rv.SGD(ones(), lr=0.1, **{name: rv.schedules.constant(1.0)})


def test_ravines_schedules_fit():
    w = np.zeros(1)
    opt = rv.SGD(w, lr=rv.schedules.warmup(2) * rv.schedules.constant(1.0))
    assert [opt.step(np.ones(1)).lr for _ in range(3)] == [rv.schedules.warmup(2)(t) for t in range(3)]
    assert opt.lr == 1.0


# What a step reports


def test_info_reports_step_rate_norm_and_what_is_not_finite():
    params = {"a": np.zeros(2), "b": np.zeros((2, 2)), "c": np.zeros(1)}
    opt = rv.SGD(params, lr=0.5, clip_norm=1.0, nonfinite="skip")
    info = opt.step({"a": np.array([3.0, 0.0]), "b": np.array([[0.0, 4.0], [0.0, 0.0]]), "c": None})
    assert (info.step, info.lr, info.grad_norm, info.skipped, info.nonfinite) == (1, 0.5, 5.0, False, {})
    np.testing.assert_allclose(params["a"], [-0.3, 0.0], rtol=1e-15)
    bad = {"a": np.array([1.0, np.nan]), "b": np.array([[0.0, 1.0], [np.inf, -np.inf]]), "c": np.ones(1)}
    info = opt.step(bad)
    assert (info.step, info.skipped, info.nonfinite) == (1, True, {"a": (1, 1), "b": (2, 2)})


def test_what_was_not_asked_for_is_none():
    info = rv.SGD(ones(), lr=0.5).step(np.full(2, np.nan))
    assert repr(info) == "StepInfo(step=1, lr=0.5, grad_norm=None, skipped=False, nonfinite=None)"


def test_the_norm_is_taken_after_clipping_by_value():
    assert rv.SGD(ones(), lr=0.5, clip_value=1.0, clip_norm=10.0).step(np.array([-50.0, 0.0])).grad_norm == 1.0


def test_info_cannot_be_changed():
    info = rv.SGD(ones(), lr=0.5).step(ones())
    with pytest.raises(AttributeError):
        info.step = 7


def test_steps_and_updates_are_counted_apart():
    params = {"a": ones(), "b": ones()}
    opt = rv.Adam(params, nonfinite="skip")
    opt.step({"a": ones(), "b": ones()})
    opt.step({"a": ones(), "b": None})
    with pytest.raises(ValueError, match="grads: expected at least one gradient, got None for every parameter"):
        opt.step({"a": None, "b": None})
    assert opt.step({"a": np.full(2, np.nan), "b": ones()}).skipped
    assert (opt.steps, opt.state_dict()["updates"]) == (2, {"a": 2, "b": 1})


def test_bias_correction_follows_the_parameters_own_count():
    # b joins at step 4, and its first step is as long as anyone's first step.
    params = {"a": np.zeros(1), "b": np.zeros(1)}
    opt = rv.Adam(params, lr=0.5, eps=0.0)
    for _ in range(3):
        opt.step({"a": np.ones(1), "b": None})
    opt.step({"a": np.ones(1), "b": np.full(1, 7.0)})
    np.testing.assert_allclose(params["b"], -0.5, rtol=1e-15)


# The order of a step


def test_maximize_ascends():
    for make in (rv.SGD, rv.Adam, rv.Lion, rv.RMSprop):
        up, down = np.zeros(3), np.zeros(3)
        g = np.array([1.0, -2.0, 0.5])
        make(up, lr=0.1, maximize=True).step(g)
        make(down, lr=0.1).step(-g)
        assert up.tobytes() == down.tobytes()
        assert (np.sign(up) == np.sign(g)).all()


STAGES = {
    "sign": lambda g, w: -g,
    "clip_value": lambda g, w: np.clip(g, -4, 4),
    "clip_norm": lambda g, w: g * min(1.0, 2.5 / np.linalg.norm(g)),
    "l2": lambda g, w: g + 0.5 * w,
}


def test_the_order_is_sign_clip_by_value_clip_by_norm_l2_then_decay_and_rule():
    # −(−8, 3) = (8, −3) → (4, −3), of norm 5 → (2, −1.5) → + ½(4, 2) = (4, −0.5);
    # w = ¾(4, 2) − ¼(4, −0.5) = (2, 1.625). All of it is exact.
    w = np.array([4.0, 2.0])
    options = {"maximize": True, "clip_value": 4.0, "clip_norm": 2.5, "l2": 0.5, "weight_decay": 1.0}
    info = rv.SGD(w, lr=0.25, **options).step(np.array([-8.0, 3.0]))
    assert info.grad_norm == 5.0
    np.testing.assert_array_equal(w, [2.0, 1.625])
    right = set()
    for order in itertools.permutations(STAGES):
        old, g = np.array([4.0, 2.0]), np.array([-8.0, 3.0])
        for stage in order:
            g = STAGES[stage](g, old)
        if np.array_equal(0.75 * old - 0.25 * g, w):
            right.add(order)
        assert not np.array_equal(0.75 * (old - 0.25 * g), w), "the decay is of the old parameter"
    # The sign may change places with the clips, being symmetric; nothing else may.
    assert right == {
        o for o in itertools.permutations(STAGES) if o[3] == "l2" and o.index("clip_value") < o.index("clip_norm")
    }


def test_l2_goes_through_the_moments_and_decay_does_not():
    coupled, decoupled = np.array([2.0]), np.array([2.0])
    a = rv.SGD(coupled, lr=0.5, momentum=0.5, l2=0.5)
    b = rv.SGD(decoupled, lr=0.5, momentum=0.5, weight_decay=0.5)
    a.step(np.ones(1))
    b.step(np.ones(1))
    assert a.state_dict()["states"]["params"]["b"] == [2.0]
    assert b.state_dict()["states"]["params"]["b"] == [1.0]
    assert (coupled[0], decoupled[0]) == (2 - 0.5 * 2, 0.75 * 2 - 0.5)


def test_gradients_that_are_not_finite_are_found_before_they_are_clipped():
    w = ones()
    info = rv.SGD(w, lr=0.5, clip_value=1.0, clip_norm=1.0, nonfinite="skip").step(np.array([np.inf, 1.0]))
    assert info.skipped
    assert info.nonfinite == {"params": (1, 0)}
    np.testing.assert_array_equal(w, 1)


def test_adamw_is_adam_with_decay():
    a, b, g = np.array([3.0, -1.0]), np.array([3.0, -1.0]), np.array([0.1, 7.0])
    one, two = rv.AdamW(a, lr=0.1, weight_decay=0.3), rv.Adam(b, lr=0.1, weight_decay=0.3)
    for _ in range(3):
        one.step(g)
        two.step(g)
    assert a.tobytes() == b.tobytes()
    assert rv.AdamW(ones()).formula().endswith("λ = 0.01")


# What an optimizer says about itself

FORMULAS = [
    (rv.SGD, {"lr": 0.5}, "w ← w − γ·g", "γ = 0.5"),
    (rv.SGD, {"lr": 0.5, "momentum": 0.9}, "b ← μ·b + g", "w ← w − γ·b", "γ = 0.5, μ = 0.9"),
    (
        rv.SGD,
        {"lr": 0.5, "momentum": 0.9, "dampening": 0.1},
        "b ← μ·b + (1 if t = 1 else 1 − τ)·g",
        "w ← w − γ·b",
        "γ = 0.5, μ = 0.9, τ = 0.1",
    ),
    (
        rv.SGD,
        {"lr": 0.5, "momentum": 0.9, "form": "average"},
        "b ← μ·b + (1 − μ)·g",
        "w ← w − γ·b",
        "γ = 0.5, μ = 0.9",
    ),
    (
        rv.SGD,
        {"lr": 0.5, "momentum": 0.9, "nesterov": True},
        "b ← μ·b + g",
        "w ← w − γ·(g + μ·b)",
        "γ = 0.5, μ = 0.9",
    ),
    (rv.SGD, {"lr": 0.5, "momentum": 0.9, "form": "velocity"}, "v ← μ·v − γ·g", "w ← w + v", "γ = 0.5, μ = 0.9"),
    (
        rv.SGD,
        {"lr": 0.5, "momentum": 0.9, "form": "heavy_ball"},
        "w⁻, w ← w, w − (γ·g − (0 if t = 1 else μ)·(w − w⁻))",
        "γ = 0.5, μ = 0.9",
    ),
    (rv.Adagrad, {"lr": 0.5}, "v ← v + g²", "w ← w − γ·g/(√v + ε)", "γ = 0.5, ε = 1e-10"),
    (rv.Adagrad, {"accumulate": "mean", "eps": 0}, "v ← v + (g² − v)/t", "w ← w − γ·g/√v", "γ = 0.01"),
    (
        rv.RMSprop,
        {"eps_inside": True},
        "v ← β·v + (1 − β)·g²",
        "w ← w − γ·g/√(v + ε)",
        "γ = 0.01, β = 0.99, ε = 1e-08",
    ),
    (
        rv.RMSprop,
        {"centered": True, "momentum": 0.9},
        "v ← β·v + (1 − β)·g²",
        "a ← β·a + (1 − β)·g",
        "b ← μ·b + g/(√(max(v − a², 0)) + ε)",
        "w ← w − γ·b",
        "γ = 0.01, β = 0.99, ε = 1e-08, μ = 0.9",
    ),
    (
        rv.Adam,
        {"bias_correction": False},
        "m ← β₁·m + (1 − β₁)·g",
        "v ← β₂·v + (1 − β₂)·g²",
        "w ← w − γ·m/(√v + ε)",
        "γ = 0.001, β₁ = 0.9, β₂ = 0.999, ε = 1e-08",
    ),
    (
        rv.Adam,
        {"eps_hat": True, "amsgrad": True},
        "m ← β₁·m + (1 − β₁)·g",
        "v ← β₂·v + (1 − β₂)·g²",
        "v̄ ← max(v̄, v)",
        "w ← w − γ·√(1 − β₂ᵗ)/(1 − β₁ᵗ)·m/(√v̄ + ε)",
        "γ = 0.001, β₁ = 0.9, β₂ = 0.999, ε = 1e-08",
    ),
    (
        rv.AdamW,
        {"maximize": True, "clip_value": 2.0, "clip_norm": 1.5},
        "g ← −g",
        "g ← min(max(g, −2.0), 2.0)",
        "g ← g·min(1, 1.5/‖g‖)",
        "m ← β₁·m + (1 − β₁)·g",
        "v ← β₂·v + (1 − β₂)·g²",
        "w ← w − (γ·λ·w + γ·√(1 − β₂ᵗ)/(1 − β₁ᵗ)·m/(√v + ε·√(1 − β₂ᵗ)))",
        "γ = 0.001, β₁ = 0.9, β₂ = 0.999, ε = 1e-08, λ = 0.01",
    ),
    (
        rv.Lion,
        {"l2": 0.1},
        "g ← g + λ₂·w",
        "w ← w − γ·sign(β₁·m + (1 − β₁)·g)",
        "m ← β₂·m + (1 − β₂)·g",
        "γ = 0.0001, β₁ = 0.9, β₂ = 0.99, λ₂ = 0.1",
    ),
    (
        rv.NAdam,
        {"eps": 0.0},
        "μ = β₁·(1 − 0.5·0.96^(ψ·t))",
        "μ₊ = β₁·(1 − 0.5·0.96^(ψ·(t + 1)))",
        "∏μ = ∏ᵢ₌₁ᵗ β₁·(1 − 0.5·(0.96^ψ)ⁱ)",
        "m ← β₁·m + (1 − β₁)·g",
        "v ← β₂·v + (1 − β₂)·g²",
        "w ← w − (γ·√(1 − β₂ᵗ)·(1 − μ)/(1 − ∏μ)·g + γ·√(1 − β₂ᵗ)·μ₊/(1 − ∏μ·μ₊)·m)/√v",
        "γ = 0.002, β₁ = 0.9, β₂ = 0.999, ψ = 0.004",
    ),
    (
        rv.Rprop,
        {},
        "s ← min(max((s + (γ if t = 1 else 0))·(η₊ if 0 < sign(g)·sign(g⁻) else (η₋ if sign(g)·sign(g⁻) < 0 else 1)), "
        "s_min), s_max)",
        "g⁻ ← (0 if sign(g)·sign(g⁻) < 0 else g)",
        "w ← w − s·sign(g⁻)",
        "γ = 0.01, η₋ = 0.5, η₊ = 1.2, s_min = 1e-06, s_max = 50.0",
    ),
    (
        rv.ScheduleFreeSGD,
        {"lr": 0.5, "warmup_steps": 10},
        "s = min(t, T)",
        "γₜ = (γ if T = 0 else γ·s/T)",
        "c = (1/t if T = 0 else s²/(s·(s + 1)·(2·s + 1)/6 + (t − s)·T·T))",
        "w ← w − ((1 − μ)·γₜ·g − μ·c·(d − γₜ·g))",
        "d ← (1 − c)·(d − γₜ·g)",
        "γ = 0.5, μ = 0.9, T = 10.0",
    ),
    (
        rv.ASGD,
        {"t0": 100.0},
        "η = γ/(1 + κ·γ·(t − 1))^α",
        "μ = 1/max(t − 1 − t₀, 1)",
        "w ← w − (κ·η·w + η·g)",
        "a ← (w if μ = 1 else a + μ·(w − a))",
        "γ = 0.01, κ = 0.0001, α = 0.75, t₀ = 100.0",
    ),
]


@pytest.mark.parametrize(
    "make, options, lines",
    [(m, o, t) for m, o, *t in FORMULAS],
    ids=[f"{m.__name__}-{'-'.join(o)}" for m, o, *_ in FORMULAS],
)
def test_the_formula_is_the_one_of_the_paper_as_configured(make, options, lines):
    assert make(ones(), **options).formula().splitlines() == lines


def test_a_scheduled_term_stands_in_the_formula_also_while_it_is_0():
    rise = rv.schedules.linear(0.0, 0.9, 5)
    momentum = rv.SGD(ones(), lr=rise, momentum=rise).formula()
    assert "μ·b" in momentum
    assert momentum.endswith("γ = linear(0.0, 0.9, 5), μ = linear(0.0, 0.9, 5)")
    assert "g ← g + λ₂·w" in rv.SGD(ones(), lr=0.1, l2=rise).formula()
    assert "γ·λ·w" in rv.SGD(ones(), lr=0.1, weight_decay=rise).formula()


def test_two_different_decays_have_two_symbols():
    last = rv.SGD(ones(), lr=0.1, l2=0.25, weight_decay=0.5).formula().splitlines()[-1]
    symbols = [part.split(" = ")[0] for part in last.split(", ")]
    assert len(symbols) == len(set(symbols)) == 3


def test_repr_names_class_count_and_values():
    text = repr(rv.AdamW(layers(), lr=rv.schedules.constant(0.5), betas=(0.8, 0.9), maximize=True))
    assert text.startswith("AdamW(4 parameters, lr=")
    for part in ("betas=(0.8, 0.9)", "eps=1e-08", "weight_decay=0.01", "maximize=True"):
        assert part in text


def test_lr_is_the_rate_of_the_last_step():
    opt = rv.SGD(ones(), lr=lambda t: [0.5, 0.25, 0.125][t])
    assert opt.lr == 0.5
    for expected in (0.5, 0.25, 0.125):
        opt.step(ones())
        assert opt.lr == expected


# Configuration


@pytest.fixture
def threads():
    before = rv.num_threads()
    yield
    rv.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_is_set_and_told():
    for n in (1, 3, 2):
        assert rv.set_num_threads(n) == n == rv.num_threads()
    for bad in (0, -1):
        with pytest.raises(ValueError, match=f"n: expected at least 1, got {bad}"):
            rv.set_num_threads(bad)
    for bad in (1.5, "2", None):
        with pytest.raises(TypeError):
            rv.set_num_threads(bad)
    assert rv.num_threads() == 2


@pytest.mark.usefixtures("threads")
def test_show_config_tells_version_instructions_and_threads(capsys):
    rv.set_num_threads(3)
    rv.show_config()
    printed = capsys.readouterr().out
    assert rv.__version__ in printed
    assert "threads      3\n" in printed
    assert any(level in printed for level in ("baseline", "avx2", "avx512"))
    assert "CuPy" in printed


def python(code, **env):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_ravine_imports_nothing_optional():
    printed = python("""
        import sys
        import ravine
        ravine.AdamW
        optional = {"cupy", "matplotlib", "sklearn", "scipy", "tqdm", "ml_dtypes", "torch", "pytest", "mpi4py"}
        print(sorted(optional & {name.partition(".")[0] for name in sys.modules}))
    """)
    assert printed == "[]"


def test_importing_ravine_leaves_the_cuda_compiler_alone():
    assert python("import sys, ravine; print('ravine.cuda.compiler' in sys.modules)") == "False"


@pytest.mark.parametrize("text, expected", [("3", "3"), (" 1 ", "1"), ("1000", "64")])
def test_the_environment_sets_the_number_of_threads(text, expected):
    assert python("import ravine; print(ravine.num_threads())", RAVINE_NUM_THREADS=text) == expected


DEFAULT_THREADS = str(min(len(os.sched_getaffinity(0)), 8)) if hasattr(os, "sched_getaffinity") else None


@pytest.mark.parametrize(
    "ours, openmp, expected",
    [
        ("", "", None),
        (" ", "5", "5"),
        ("", "5,2,1", "5"),
        ("", " 6 , 2", "6"),
        ("3", "5", "3"),
        ("", "100", "64"),
        *(("", text, None) for text in ("0", "-1", "two", ",4", "2.5")),
    ],
)
def test_without_our_variable_openmps_sets_the_number_of_threads_and_then_the_machine(ours, openmp, expected):
    code = "import ravine; print(ravine.num_threads())"
    printed = python(code, RAVINE_NUM_THREADS=ours, OMP_NUM_THREADS=openmp)
    assert printed == (expected or DEFAULT_THREADS or printed)


@pytest.mark.parametrize(
    "name, text, expected",
    [
        *(("RAVINE_NUM_THREADS", text, "a whole number >= 1") for text in ("abc", "0", "-1", "two", "2.0", "4,2")),
        *(("RAVINE_SIMD", text, "one of baseline, avx2, avx512, in any case") for text in ("sse9", "avx", "1")),
    ],
)
def test_fault_39_an_environment_variable_that_says_nothing_is_an_error_at_import(name, text, expected):
    code = """
        try:
            import ravine
        except ValueError as error:
            print(error)
    """
    assert python(code, **{name: text}) == f'{name}: expected {expected}, got "{text}"'


def test_the_instruction_set_is_named_in_any_case():
    code = "import ravine; print(ravine._core.simd_level())"
    for text in ("AVX2", "Avx512", " baseline ", "BASELINE", ""):
        assert python(code, RAVINE_SIMD=text) == python(code, RAVINE_SIMD=text.lower().strip())
    assert python(code, RAVINE_SIMD="BASELINE") == "baseline"


@pytest.mark.parametrize("order", ["import ravine, threadpoolctl", "import threadpoolctl, ravine"])
def test_threadpoolctl_asks_and_limits_our_threads(order):
    pytest.importorskip("threadpoolctl")
    printed = python(f"""
        {order}
        ravine.set_num_threads(3)
        own, = [of for of in threadpoolctl.threadpool_info() if of["user_api"] == "ravine"]
        print(own["num_threads"], own["version"] == ravine.__version__)
        for limits in (1, {{"ravine": 2}}, {{"openmp": 1}}):
            with threadpoolctl.threadpool_limits(limits):
                print(ravine.num_threads())
        print(ravine.num_threads())
    """)
    assert printed.split() == ["3", "True", "1", "2", "3", "3"]


def test_the_environment_lowers_the_instruction_set_without_changing_bits():
    code = """
        import hashlib
        import numpy as np, ravine as rv
        w, g = np.linspace(-1, 1, 5001, dtype=np.float32), np.cos(np.arange(5001, dtype=np.float32))
        opt = rv.AdamW(w, clip_norm=1.0)
        for _ in range(3): opt.step(g)
        print(rv._core.simd_level(), hashlib.sha256(w.tobytes()).hexdigest())
    """
    results = {level: python(code, RAVINE_SIMD=level).split() for level in ("baseline", "avx2", "avx512", "")}
    assert results["baseline"][0] == "baseline"
    assert results["avx2"][0] in ("avx2", "baseline")
    assert results["avx512"][0] == results[""][0]
    assert len({bits for _, bits in results.values()}) == 1
