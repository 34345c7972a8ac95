"""opt.groups: every hyperparameter as it is now, and set from the next step on; checked before anything changes."""

import numpy as np
import pytest

import ravine as rv
from tests.conftest import RULES, assert_same_bits
from tests.test_state import OPTIMIZERS

every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def layers():
    return {"hidden": {"w": np.ones(3), "b": np.ones(2)}, "out": {"w": np.ones(2), "b": np.ones(1)}}


def grouped(**options):
    groups = [("*.b", {"weight_decay": 0.0, "betas": (0.5, 0.75)})]
    return rv.AdamW(layers(), lr=0.1, weight_decay=0.2, groups=groups, **options)


def test_groups_are_mappings_with_the_names_of_their_parameters():
    opt = grouped()
    assert len(opt.groups) == 2
    assert [group.names for group in opt.groups] == [["hidden.w", "out.w"], ["hidden.b", "out.b"]]
    assert dict(opt.groups[1]) == {
        "lr": 0.1,
        "betas": (0.5, 0.75),
        "eps": 1e-8,
        "eps_inside": False,
        "eps_hat": False,
        "bias_correction": True,
        "weight_decay": 0.0,
        "l2": 0.0,
        "maximize": False,
        "decay_after": False,
        "decay_implicit": False,
        "decay_unscaled": False,
    }
    assert "lr" in opt.groups[0]
    assert "momentum" not in opt.groups[0]
    assert opt.groups[-1].names == opt.groups[1].names
    assert [group.names for group in opt.groups[:1]] == [["hidden.w", "out.w"]]
    assert repr(rv.SGD(np.ones(1), lr=0.5, momentum=0.25).groups) == (
        "[Group(['params'], lr=0.5, momentum=0.25, dampening=0.0, weight_decay=0.0, l2=0.0)]"
    )


@every_optimizer
def test_every_number_of_every_rule_is_read_set_and_used(name):
    """As if the optimizer had been made with it."""
    make = OPTIMIZERS[name]
    values = dict(make(np.ones(3)).groups[0])
    kinds = RULES[name]["hyperparameters"]
    for key, value in values.items():
        if isinstance(value, bool):
            continue
        new = {
            tuple: lambda v: tuple(0.5 * x if x < 1 else 1.5 * x for x in v),
            float: lambda v: 3.0 if kinds.get(key) == "whole" else v * 0.5 or 0.125,  # noqa: B023
        }[type(value)](value)
        here, there = np.full(3, 0.5), np.full(3, 0.5)
        # Left out, the second ε of AdaBelief is the first.
        others = {"eps_root": values["eps_root"]} if "eps_root" in values else {}
        opt, other = make(here), make(there, **{**make.keywords, **others, key: new})
        opt.groups[0][key] = new
        assert opt.groups[0][key] == other.groups[0][key] == new
        assert repr(opt) == repr(other)
        for seed in range(3):
            g = np.random.default_rng(seed).standard_normal(3)
            opt.step(g)
            other.step(g)
        assert_same_bits(here, there, f"{name}: {key}")


def test_setting_one_group_leaves_the_others(gpu):
    for xp in (np, gpu):
        w = {"a": xp.ones(1), "b": xp.ones(1)}
        opt = rv.SGD(w, lr=0.25, groups=[("b", {"lr": 0.5})])
        opt.groups[0]["lr"] = 0.125
        opt.step({"a": xp.ones(1), "b": xp.ones(1)})
        assert (w["a"].tolist(), w["b"].tolist()) == ([0.875], [0.5])
        assert (opt.lr, opt.groups["a"]["lr"], opt.groups["b"]["lr"]) == (0.125, 0.125, 0.5)
        opt.groups[1]["lr"] = 0.125
        opt.lr = 1.0
        assert [group["lr"] for group in opt.groups] == [1.0, 1.0]


def test_a_pattern_names_the_group_of_just_its_parameters():
    opt = grouped()
    opt.groups["*.b"]["eps"] = 0.25
    assert [group["eps"] for group in opt.groups] == [1e-8, 0.25]
    assert opt.groups["*.w"].names == ["hidden.w", "out.w"]
    for key, words in {
        "hidden.b": r"'hidden\.b' matches \['hidden\.b'\], which is no whole group: see opt\.groups\[1\]",
        "out.*": "is no whole group",
        "*": "is no whole group",
        "hiden.b": r"matches no parameter; did you mean 'hidden\.b'",
        "x": r"there are \['hidden\.w'",
    }.items():
        with pytest.raises(KeyError, match=words):
            opt.groups[key]
    with pytest.raises(IndexError):
        opt.groups[2]


@pytest.mark.parametrize(
    ("key", "value", "error", "words"),
    [
        ("betas", (0.5, 1.0), ValueError, r"beta2: expected a number in \[0, 1\), got 1"),
        ("betas", 0.5, ValueError, "betas: expected two numbers"),
        ("betas", (0.5, 0.5, 0.5), ValueError, "betas: expected two numbers"),
        ("betas", (0.5, "0.5"), TypeError, "beta2: expected a number, got '0.5'"),
        ("eps", -1.0, ValueError, "eps: expected a finite number >= 0, got -1"),
        ("eps", float("nan"), ValueError, "eps"),
        ("lr", "0.1", TypeError, "lr: expected a number, got '0.1'"),
        ("lr", rv.schedules.constant(0.5), TypeError, "lr: expected a number"),
        ("weight_decay", float("inf"), ValueError, "weight_decay"),
        ("maximize", True, ValueError, "maximize: it makes the formula"),
        ("bias_correction", False, ValueError, "bias_correction: it makes the formula"),
        ("beta1", 0.5, KeyError, "AdamW has no 'beta1' in its groups; did you mean 'betas'"),
        ("weight_decy", 0.5, KeyError, "did you mean 'weight_decay'"),
        ("clip_norm", 0.5, KeyError, r"no 'clip_norm' in its groups"),
    ],
    ids=str,
)
def test_what_cannot_be_set_is_refused_and_nothing_changes(key, value, error, words):
    opt = grouped()
    before = [dict(group) for group in opt.groups], repr(opt)
    with pytest.raises(error, match=words):
        opt.groups[1][key] = value
    assert ([dict(group) for group in opt.groups], repr(opt)) == before
    if error is KeyError:
        with pytest.raises(KeyError, match=words):
            opt.groups[1][key]


def test_what_a_schedule_sets_is_read_at_the_last_step_and_cannot_be_set():
    lr, beta2 = rv.schedules.linear(0.5, 0.0, 5), rv.schedules.constant(0.75)
    opt = rv.Adam(np.ones(2), lr=lr, betas=(0.5, beta2))
    for step in range(3):
        opt.step(np.ones(2))
        assert (opt.groups[0]["lr"], opt.groups[0]["betas"]) == (lr(step), (0.5, 0.75))
    for key, value in (("lr", 0.25), ("betas", (0.5, 0.5))):
        with pytest.raises(ValueError, match=rf"^{key}: the schedule .* sets it; give the optimizer a number"):
            opt.groups[0][key] = value
    opt.groups[0]["eps"] = 0.5
    opt.step(np.ones(2))
    assert (opt.groups[0]["lr"], opt.groups[0]["eps"]) == (lr(3), 0.5)


def test_a_view_is_live():
    opt = grouped()
    group = opt.groups[0]
    opt.lr = 0.75
    assert group["lr"] == 0.75


def test_numbers_set_by_groups_go_through_checkpoints(tmp_path, gpu):
    opt = grouped()
    g = layers()
    opt.step(g)
    opt.groups["*.b"]["betas"] = (0.25, 0.5)
    opt.groups[0]["weight_decay"] = 0.75
    opt.save(tmp_path / "run")
    for put in (lambda x: x, gpu.asarray):
        other = rv.AdamW(
            rv.trees.map(put, layers()),
            lr=0.1,
            weight_decay=0.2,
            groups=[("*.b", {"weight_decay": 0.0, "betas": (0.5, 0.75)})],
        )
        done = other.load(tmp_path / "run")
        assert done.restored == (
            "weight_decay of 'hidden.w': 0.75, was 0.2",
            "beta1 of 'hidden.b': 0.25, was 0.5",
            "beta2 of 'hidden.b': 0.5, was 0.75",
        )
        assert [dict(group) for group in other.groups] == [dict(group) for group in opt.groups]
        other.step(rv.trees.map(put, g))
    opt.step(g)
    for a, b in zip(opt._engine.parameters, other._engine.parameters, strict=True):
        assert_same_bits(b.get(), a)


def test_a_captured_step_takes_what_is_set_between_replays(gpu_device):
    if not hasattr(gpu_device, "is_capturing"):
        pytest.skip("on a GPU: test_cuda_graph.py")
    w = gpu_device.xp.zeros(2)
    opt = rv.SGD(w, lr=1.0)
    opt.step(gpu_device.xp.ones(2))
    gpu_device.is_capturing = True
    opt.step(gpu_device.xp.ones(2))  # which the stand-in runs
    gpu_device.is_capturing = False
    gpu_device.launches.clear()
    opt.groups[0]["lr"] = 0.5
    assert gpu_device.launches == ["poke"]
