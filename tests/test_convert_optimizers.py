"""``rv.convert`` through real optimizers: a run that changes its description half-way keeps its path."""

import numpy as np
import pytest

import ravine as rv

FORMS = ["accumulate", "average"]
STEPS = 100


def start():
    rng = np.random.default_rng(0)
    return {"a": rng.standard_normal((3, 4)), "b": [rng.standard_normal(5), np.zeros(2)]}


def gradient(params):
    """Nonlinear, with neighbours coupled; monotone enough that a run does not magnify its rounding errors."""
    return rv.trees.map(lambda w: w + 0.4 * np.sin(2 * w) + 0.3 * np.tanh(np.roll(w, 1)) - 0.2, params)


def run(opt, params, steps):
    path = []
    for _ in range(steps):
        opt.step(gradient(params))
        path.append(np.concatenate([w.ravel() for w in rv.trees.leaves(params).values()]))
    return path


def converted(opt, params, convert, **settings):
    """A new optimizer, of the other description, at the point where ``opt`` stands."""
    state = opt.state_dict()
    leaves = rv.trees.leaves(params)
    new = convert(**settings, params=leaves, buffers={name: state["states"][name]["b"] for name in leaves})
    other = rv.SGD(params, lr=new.lr, momentum=new.momentum, weight_decay=new.weight_decay, l2=new.l2, form=new.form)
    other.load_state_dict(state | {"states": {name: {"b": b} for name, b in new.buffers.items()}})
    return other, new


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("before", [0, 1, 30])
@pytest.mark.parametrize("lr, momentum, decay", [(0.1, 0.9, 0.05), (0.01, 0.99, 0.5), (0.05, 0.2, 12.0)])
def test_decoupled_to_coupled_in_mid_run_keeps_the_path(form, before, lr, momentum, decay):
    settings = {"lr": lr, "momentum": momentum, "weight_decay": decay, "form": form}
    stays, changes = start(), start()
    one, two = rv.SGD(stays, **settings), rv.SGD(changes, **settings)
    run(one, stays, before)
    run(two, changes, before)
    two, new = converted(two, changes, rv.convert.decoupled_to_coupled, **settings)
    assert (new.weight_decay, new.l2 > 0) == (0, True)
    np.testing.assert_allclose(run(two, changes, STEPS), run(one, stays, STEPS), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("before", [0, 1, 30])
@pytest.mark.parametrize("lr, momentum, l2", [(0.1, 0.8, 0.05), (0.05, 0.25, 4.0)])
def test_coupled_to_decoupled_in_mid_run_keeps_the_path(form, before, lr, momentum, l2):
    settings = {"lr": lr, "momentum": momentum, "l2": l2, "form": form}
    stays, changes = start(), start()
    one, two = rv.SGD(stays, **settings), rv.SGD(changes, **settings)
    run(one, stays, before)
    run(two, changes, before)
    two, new = converted(two, changes, rv.convert.coupled_to_decoupled, **settings)
    assert (new.l2, new.weight_decay > 0) == (0, True)
    np.testing.assert_allclose(run(two, changes, STEPS), run(one, stays, STEPS), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_there_and_back_in_mid_run_keeps_the_path(form):
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3, "form": form}
    stays, changes = start(), start()
    path = run(rv.SGD(stays, **settings), stays, 30 + 2 * STEPS)
    opt = rv.SGD(changes, **settings)
    head = run(opt, changes, 30)
    opt, there = converted(opt, changes, rv.convert.decoupled_to_coupled, **settings)
    middle = run(opt, changes, STEPS)
    coupled = {"lr": there.lr, "momentum": there.momentum, "l2": there.l2, "form": form}
    opt, back = converted(opt, changes, rv.convert.coupled_to_decoupled, **coupled)
    assert back.momentum == pytest.approx(0.9)
    np.testing.assert_allclose(head + middle + run(opt, changes, STEPS), path, rtol=0, atol=1e-12)
    assert opt.steps == 30 + 2 * STEPS


@pytest.mark.parametrize("form", FORMS)
def test_without_the_conversion_of_the_buffers_the_path_is_another(form):
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3, "form": form}
    stays, changes = start(), start()
    one, two = rv.SGD(stays, **settings), rv.SGD(changes, **settings)
    run(one, stays, 30)
    run(two, changes, 30)
    state = two.state_dict()
    two, new = converted(two, changes, rv.convert.decoupled_to_coupled, **settings)
    two.load_state_dict(state)
    assert np.abs(np.subtract(run(two, changes, STEPS), run(one, stays, STEPS))).max() > 1e-3
    assert new.form == form


def test_float32_keeps_the_path_to_its_own_precision():
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3}
    stays, changes = (rv.trees.map(lambda w: w.astype(np.float32), start()) for _ in range(2))
    one, two = rv.SGD(stays, **settings), rv.SGD(changes, **settings)
    run(one, stays, 30)
    run(two, changes, 30)
    two, _ = converted(two, changes, rv.convert.decoupled_to_coupled, **settings)
    np.testing.assert_allclose(run(two, changes, STEPS), run(one, stays, STEPS), rtol=0, atol=2e-6)
