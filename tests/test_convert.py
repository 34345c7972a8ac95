"""Decoupled decay as coupled L2 and back: the two descriptions take one path, step by step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravine.convert import coupled_to_decoupled, decoupled_to_coupled
from tests.reference.rules import pipeline_step

FORMS = ["accumulate", "average"]
W0 = np.array([1.0, -2.0, 0.3, 0.0])


def gradient(w):
    """Nonlinear, with neighbours coupled; monotone enough that a run does not magnify its rounding errors."""
    return w + 0.4 * np.sin(2 * w) + 0.3 * np.tanh(np.roll(w, 1)) - 0.2


def run(steps, w, b, *, lr, momentum, form, weight_decay=0.0, l2=0.0, first=1):
    path = []
    hyper = {"lr": lr, "momentum": momentum, "average": int(form == "average")}
    state = {"b": b}
    for t in range(first, first + steps):
        w, state = pipeline_step("momentum", w, gradient(w), state, t, hyper, weight_decay=weight_decay, l2=l2)
        path.append(w)
    return np.array(path), state["b"]


def rerun(steps, w, new, first=1):
    path, b = run(
        steps,
        w,
        new.buffers,
        lr=new.lr,
        momentum=new.momentum,
        form=new.form,
        weight_decay=new.weight_decay,
        l2=new.l2,
        first=first,
    )
    return path, b


def assert_same_path(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-13)


DECOUPLED = [(0.1, 0.9, 0.05), (0.01, 0.99, 0.5), (0.3, 0.0, 1.0), (0.2, 0.5, 0.0), (0.05, 0.2, 12.0)]
COUPLED = [(0.1, 0.8, 0.05), (0.3, 0.0, 1.0), (0.2, 0.5, 0.0), (0.05, 0.25, 4.0)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lr, momentum, weight_decay", DECOUPLED)
def test_a_fresh_decoupled_run_and_its_coupled_run_take_one_path(form, lr, momentum, weight_decay):
    new = decoupled_to_coupled(lr=lr, momentum=momentum, weight_decay=weight_decay, form=form, params=W0)
    path, _ = run(100, W0, np.zeros(4), lr=lr, momentum=momentum, form=form, weight_decay=weight_decay)
    assert new.weight_decay == 0
    assert_same_path(rerun(100, W0, new)[0], path)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lr, momentum, l2", COUPLED)
def test_a_fresh_coupled_run_and_its_decoupled_run_take_one_path(form, lr, momentum, l2):
    new = coupled_to_decoupled(lr=lr, momentum=momentum, l2=l2, form=form, params=W0)
    path, _ = run(100, W0, np.zeros(4), lr=lr, momentum=momentum, form=form, l2=l2)
    assert new.l2 == 0
    assert_same_path(rerun(100, W0, new)[0], path)


@pytest.mark.parametrize("form", FORMS)
def test_a_run_converted_midway_there_and_back_keeps_its_path(form):
    decoupled = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3, "form": form}
    whole, _ = run(100, W0, np.zeros(4), **decoupled)
    head, b = run(40, W0, np.zeros(4), **decoupled)
    there = decoupled_to_coupled(**decoupled, params=head[-1], buffers=b)
    middle, b = rerun(30, head[-1], there, first=41)
    back = coupled_to_decoupled(
        lr=there.lr, momentum=there.momentum, l2=there.l2, form=form, params=middle[-1], buffers=b
    )
    tail, _ = rerun(30, middle[-1], back, first=71)
    assert_same_path(np.concatenate([head, middle, tail]), whole)


@given(
    lr=st.floats(1e-4, 1.0),
    momentum=st.floats(0, 0.99),
    pull=st.floats(0, 0.95),
    form=st.sampled_from(FORMS),
)
def test_there_and_back_is_the_identity_where_the_greater_root_is_the_decay(lr, momentum, pull, form):
    # pull = γλ; the roots 1 − γλ and μ keep a distance, whose square root the rounding of a double root would be.
    pull = min(pull, 0.9 * (1 - momentum))
    buffers = np.array([0.5, -1.0, 2.0, 0.0])
    there = decoupled_to_coupled(
        lr=lr, momentum=momentum, weight_decay=pull / lr, form=form, params=W0, buffers=buffers
    )
    back = coupled_to_decoupled(
        lr=there.lr, momentum=there.momentum, l2=there.l2, form=form, params=W0, buffers=there.buffers
    )
    assert back.form == form
    np.testing.assert_allclose(
        [back.lr, back.momentum, back.weight_decay], [lr, momentum, pull / lr], rtol=1e-8, atol=1e-9
    )
    np.testing.assert_allclose(back.buffers, buffers, rtol=1e-8, atol=1e-8 * (1 + pull / lr))


@pytest.mark.parametrize("form", FORMS)
def test_the_exchanged_roots_take_the_same_path(form):
    # μ > 1 − γλ: back comes the pair with the roots exchanged.
    decoupled = {"lr": 0.5, "momentum": 0.8, "weight_decay": 1.2, "form": form}
    there = decoupled_to_coupled(**decoupled, params=W0)
    back = coupled_to_decoupled(
        lr=there.lr, momentum=there.momentum, l2=there.l2, form=form, params=W0, buffers=there.buffers
    )
    assert back.momentum == pytest.approx(0.4)
    assert_same_path(rerun(100, W0, back)[0], run(100, W0, np.zeros(4), **decoupled)[0])


def test_the_seeds_sign_does_not_agree():
    # The lecture's λ' = (1 + μ)λ, with everything else right.
    decoupled = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "form": "accumulate"}
    new = decoupled_to_coupled(**decoupled, params=W0)
    path, _ = run(100, W0, np.zeros(4), **decoupled)
    coupled = {"lr": new.lr, "momentum": new.momentum, "form": new.form}
    assert new.l2 == pytest.approx((1 - 0.9) * 0.05)
    wrong, _ = run(100, W0, new.buffers, **coupled, l2=(1 + 0.9) * 0.05)
    assert np.abs(wrong - path).max() > 1e-2


def test_the_regularisation_strength_alone_does_not_agree():
    # Nor does the right λ' with the old momentum, or with a buffer that starts at 0.
    decoupled = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.5, "form": "accumulate"}
    new = decoupled_to_coupled(**decoupled, params=W0)
    path, _ = run(100, W0, np.zeros(4), **decoupled)
    old_momentum, _ = run(100, W0, new.buffers, lr=0.1, momentum=0.9, form="accumulate", l2=new.l2)
    zero_buffer, _ = run(100, W0, np.zeros(4), lr=0.1, momentum=new.momentum, form="accumulate", l2=new.l2)
    assert np.abs(old_momentum - path).max() > 1e-2
    assert np.abs(zero_buffer - path).max() > 1e-2


def test_buffers_keep_nesting_dtype_and_shape():
    params = {"a": [np.ones((2, 3), np.float32), np.float64(2.0)[...]], "b": (np.ones(2, np.float16),)}
    buffers = {"a": [np.ones((2, 3), np.float32), np.float64(1.0)[...]], "b": (np.ones(2, np.float32),)}
    before = np.copy(buffers["a"][0])
    for given_buffers in (buffers, None):
        new = decoupled_to_coupled(lr=0.5, momentum=0.5, weight_decay=0.5, params=params, buffers=given_buffers)
        assert isinstance(new.buffers["a"], list)
        assert isinstance(new.buffers["b"], tuple)
        assert isinstance(new.buffers["a"][1], np.ndarray)
        assert new.buffers["a"][0].dtype == np.float32
        assert new.buffers["a"][0].shape == (2, 3)
    assert new.buffers["b"][0].dtype == np.float16
    np.testing.assert_array_equal(buffers["a"][0], before)


def test_no_params_no_buffers():
    assert decoupled_to_coupled(lr=0.5, momentum=0.5, weight_decay=0.5).buffers is None


def test_a_rate_of_zero_converts():
    new = decoupled_to_coupled(lr=0.0, momentum=0.5, weight_decay=0.5, form="average", params=W0)
    assert (new.lr, new.momentum, new.l2) == (0.0, 0.5, 0.5)
    np.testing.assert_array_equal(new.buffers, 0.5 * W0)


def test_the_double_root_converts():
    # μ = 1 − γλ: the discriminant is 0, or a rounding error below it.
    for mu in np.linspace(0.05, 0.95, 19):
        there = decoupled_to_coupled(lr=1.0, momentum=mu, weight_decay=1 - mu)
        back = coupled_to_decoupled(lr=there.lr, momentum=there.momentum, l2=there.l2)
        assert back.momentum == pytest.approx(mu, abs=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_the_discriminant_decides(form):
    lr, mu = 0.1, 0.64
    share = 1 if form == "accumulate" else 1 - mu
    limit = (1 - np.sqrt(mu)) ** 2 / (lr * share)
    coupled_to_decoupled(lr=lr, momentum=mu, l2=limit * (1 - 1e-9), form=form)
    with pytest.raises(ValueError, match="l2: expected at most"):
        coupled_to_decoupled(lr=lr, momentum=mu, l2=limit * (1 + 1e-9), form=form)
    # The quadratic has real roots again far above, but negative ones: 1 − γλ < 0.
    with pytest.raises(ValueError, match="l2: expected at most"):
        coupled_to_decoupled(lr=lr, momentum=mu, l2=10 / (lr * share), form=form)


VALID = {"lr": 0.1, "momentum": 0.9}


@pytest.mark.parametrize("convert, decay", [(decoupled_to_coupled, "weight_decay"), (coupled_to_decoupled, "l2")])
@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"lr": lambda step: 0.1}, TypeError, "lr: expected a constant"),
        ({"lr": "0.1"}, TypeError, "lr: expected a number"),
        ({"lr": -0.1}, ValueError, "lr: expected a finite number of at least 0, got -0.1"),
        ({"lr": float("nan")}, ValueError, "lr: expected a finite"),
        ({"momentum": 1.0}, ValueError, "momentum: expected less than 1"),
        ({"momentum": True}, TypeError, "momentum: expected a number"),
        ({"nesterov": True}, ValueError, "nesterov: expected False"),
        ({"dampening": 0.1}, ValueError, "dampening: expected 0"),
        ({"form": "velocity"}, ValueError, "form: expected"),
        ({"buffers": np.ones(2)}, ValueError, "params: expected"),
        ({"params": np.ones(2), "buffers": np.ones((2, 1))}, ValueError, r"buffers: expected shape \(2,\)"),
        ({"params": {"x": {"y": np.ones(2)}}, "buffers": {"x": {"y": np.ones(3)}}}, ValueError, r"buffers\['x\.y'\]"),
        ({"params": {"x": np.ones(2)}, "buffers": {"y": np.ones(2)}}, ValueError, r"missing \['x'\], extra \['y'\]"),
        ({"params": [np.ones(2)], "buffers": []}, ValueError, "buffers: expected the names of params"),
        ({"params": [np.ones(2)], "buffers": [None]}, TypeError, r"buffers\['0'\]: expected an array, got None"),
        ({"params": [np.ones(2, int)]}, TypeError, r"params\['0'\]: expected floating-point"),
        ({"params": [[1.0]]}, TypeError, r"params\['0\.0'\]: expected an array"),
    ],
)
def test_bad_input_raises(convert, decay, change, error, message):
    with pytest.raises(error, match=message):
        convert(**{**VALID, decay: 0.01, **change})


@pytest.mark.parametrize("weight_decay", [10.0, 11.0])
def test_forgetting_w_altogether_raises(weight_decay):
    with pytest.raises(ValueError, match=r"lr \* weight_decay: expected less than 1"):
        decoupled_to_coupled(lr=0.1, momentum=0.9, weight_decay=weight_decay)
    with pytest.raises(ValueError, match=r"lr \* l2: expected less than 1"):
        coupled_to_decoupled(lr=0.1, momentum=0.0, l2=weight_decay)
