"""A finite gradient whose square overflows must not freeze its element, nor those that share a scale with it."""

import numpy as np
import pytest

import ravine as rv
from tests.conftest import RULES, engine, hyper_sets

SQUARING = [rule for rule, about in RULES.items() if "second" in about["states"].values()]
#: Sums, means over all updates, largest values: what was large once stays large in them.
LASTING = {"adagrad", "adagrad_mean", "adam_amsgrad", "yogi", "madgrad"}
STATES = [None, "bfloat16", "8bit"]
N = 300


def hyperparameters(rule):
    """No ε and no switch on but those that bound a step; every mean forgets a quarter of the past."""
    kinds = RULES[rule]["hyperparameters"]
    off = {name for name, kind in kinds.items() if kind == "switch"} - {"bias_correction", "clip"}
    hyper = next(hyper_sets(rule))
    return {name: 0.75 if kinds[name] == "fraction" else 0.0 if name in off else value for name, value in hyper.items()}


def run(rule, dtype, spike, states):
    w = np.ones(N, dtype)
    steps = 600 if dtype is np.float32 else 3000  # until the largest square is below 1e-30
    made = engine(rule, w, hyperparameters(rule), states=states)
    before = w.copy()
    for t in range(steps):
        before = w.copy()
        g = np.ones(N, dtype)
        if t == 30:  # past the warm-up of RAdam, whose steps are not divided there
            g[5] = spike
        made.step(g)
    return made, w, before


@pytest.mark.parametrize("states", STATES)
@pytest.mark.parametrize("dtype, spike", [(np.float32, 2e19), (np.float32, -1e20), (np.float64, 2e160)], ids=str)
@pytest.mark.parametrize("rule", SQUARING)
def test_an_element_recovers_from_a_gradient_whose_square_overflows(rule, dtype, spike, states):
    if states and dtype is np.float64:
        states = None  # states in fewer bytes are of float32 arithmetic
    with np.errstate(all="ignore"):
        made, w, before = run(rule, dtype, spike, states)
        _, calm, calm_before = run(rule, dtype, 1.0, states)
    assert np.isfinite(w).all()
    for array in made.states[0]:
        scales = array.dtype.kind != "f" and array.dtype.itemsize == 1
        assert scales or np.isfinite(array.astype(np.float64)).all()
    if rule not in LASTING:
        moved, expected = np.abs(w - before).astype(np.float64), np.abs(calm - calm_before).astype(np.float64)
        # Rounded at random, steps differ by a few parts in a hundred.
        assert np.all(moved > 0.05 * expected)
        assert np.all(moved < 20 * expected + 1e-12)


@pytest.mark.parametrize("rule", ["rmsprop_centered", "rmsprop_centered_momentum"])
def test_a_mean_whose_square_overflows_is_no_small_variance(rule):
    w = np.ones(4, np.float32)
    made = engine(rule, w, {**hyperparameters(rule), "eps": 1e-8})
    for _ in range(3):
        made.step(np.full(4, 3e38, np.float32))
    # g/√v is at most 3e38/1.8e19 while both are capped, and g/ε would be infinite.
    assert np.isfinite(w).all()


@pytest.mark.parametrize("name", ["lr", "weight_decay", "l2", "eps"])
def test_a_number_that_float32_does_not_have_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}: expected a number that is finite in float32"):
        rv.Adam(np.zeros(2, np.float32), **{"lr": 0.1, name: 1e39})
    rv.Adam(np.zeros(2), **{"lr": 0.1, name: 1e39})
    opt = rv.Adam({"a": np.zeros(2), "b": np.zeros(2, np.float16)}, lr=lambda step: 0.1 if step < 1 else 1e39)
    g = {"a": np.ones(2), "b": np.ones(2, np.float16)}
    opt.step(g)
    with pytest.raises(ValueError, match="lr: expected a number that is finite in float32"):
        opt.step(g)
    with pytest.raises(ValueError, match="lr: expected a number that is finite in float32"):
        rv.functional.sgd_(np.zeros(2, np.float32), np.ones(2, np.float32), lr=1e39)


@pytest.mark.parametrize("shape", [(6,), (3, 4)])
def test_second_moments_of_adafactor_stay_finite(shape, gpu):
    for xp in (np, gpu):
        w = xp.ones(shape)
        opt = rv.Adafactor(w, lr=0.1, scale_parameter=False)
        g = xp.full(shape, 2e160)
        opt.step(g)
        opt.step(xp.ones(shape))
        states = opt.state_dict()["states"]["params"]
        assert all(np.isfinite(rv.trees.to_host(state)).all() for state in states.values())
        assert np.isfinite(rv.trees.to_host(w)).all()
