"""What an optimizer is told besides its gradients: rates, options, schedules; what it says of them; its lock."""

import copy
import dis
import inspect
import pickle
import re
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import ravine as rv
from ravine import groups
from tests.conftest import assert_same_bits
from tests.test_state import OPTIMIZERS

# ---------------------------------------------------------------------------------------------------------------------
# 32: Ctrl-C at any moment of a step

#: After these, Python looks whether a signal has come.
LOOKS = {dis.opmap[name] for name in ("CALL", "CALL_FUNCTION_EX", "RESUME", "JUMP_BACKWARD") if name in dis.opmap}


def interrupted_at(n, call):
    """Raise KeyboardInterrupt where ravine's own Python would handle the n-th signal; say whether there was one."""
    left, last = [n], {}

    def trace(frame, event, argument):
        if "ravine" not in frame.f_globals.get("__name__", "") or frame.f_globals["__name__"].startswith("tests"):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            if last.get(id(frame)) in LOOKS:
                left[0] -= 1
                if left[0] == -1:
                    raise KeyboardInterrupt
            last[id(frame)] = frame.f_code.co_code[frame.f_lasti]
        elif event == "call":
            last.pop(id(frame), None)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return left[0] < 0


def accumulated(opt, g):
    opt.accumulate(g)
    opt.step()


STEPS = {
    "schedule": (partial(rv.SGD, lr=rv.schedules.linear(0.5, 0.25, 100) * 0.5), lambda opt, g: opt.step(g)),
    "grad_scale": (partial(rv.Adam, lr=0.1), lambda opt, g: opt.step(g, grad_scale=2.0)),
    "loss_scale": (partial(rv.Adam, lr=0.1), lambda opt, g: opt.step(g, grad_scale=rv.DynamicLossScale(2.0))),
    "accumulate": (partial(rv.SGD, lr=0.1), accumulated),
    "rows": (
        partial(rv.SGD, lr=0.1),
        lambda opt, g: opt.step(rv.RowSparse(np.array([0]), np.ones((1, 3), np.float32))),
    ),
    "muon": (partial(rv.Muon, lr=0.1), lambda opt, g: opt.step(g)),
    "adafactor": (partial(rv.Adafactor, lr=0.1), lambda opt, g: opt.step(g)),
}


@pytest.mark.parametrize("where", ["cpu", "gpu"])
@pytest.mark.parametrize(("make", "step"), STEPS.values(), ids=STEPS)
def test_fault_32_ctrl_c_at_any_moment_of_a_step_leaves_no_lock(make, step, where, request):
    put = np.asarray if where == "cpu" else request.getfixturevalue("gpu").asarray
    if where == "gpu" and step is STEPS["rows"][1]:
        pytest.skip("its rows are NumPy's; they take the lock of the step alone")
    g, n, opt = put(np.ones((2, 3), np.float32)), 0, make(put(np.ones((2, 3), np.float32)))
    step(opt, g)
    while interrupted_at(n, lambda: step(opt, g)):
        opt.discard_accumulated()
        before = opt.steps
        step(opt, g)
        assert opt.steps == before + 1, n
        n += 1 if where == "cpu" else 7
    assert n > 10


# ---------------------------------------------------------------------------------------------------------------------
# C1: rates of groups

EVERY = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def two(xp=np):
    return {"w": xp.asarray([[1.0, -2.0]]), "b": xp.asarray([[3.0, 0.5]])}


def grads(seed, xp=np):
    rng = np.random.default_rng(seed)
    return {name: xp.asarray(rng.standard_normal((1, 2))) for name in ("w", "b")}


def test_a_rate_for_all_is_refused_where_groups_have_their_own():
    """Multiplying what the getter says set both to .0001."""
    opt = rv.SGD(two(), lr=0.001, groups=[("b", {"lr": 0.1})])
    with pytest.raises(ValueError, match=r"lr: expected .*\[0\.001, 0\.1\].*opt\.scale_lr\(f\).*opt\.groups\[i\]") as e:
        opt.lr *= 0.1
    assert '["lr"]' in str(e.value)
    assert [group["lr"] for group in opt.groups] == [0.001, 0.1]
    opt.scale_lr(0.1)
    assert [group["lr"] for group in opt.groups] == [0.001 * 0.1, 0.1 * 0.1]
    assert opt.lr == 0.001 * 0.1


def test_a_rate_for_all_keeps_the_factors_of_groups():
    opt = rv.SGD(two(), lr=0.5, groups=[("b", {"lr_scale": 0.25})])
    opt.lr *= 0.5
    assert [(group["lr"], group["lr_scale"]) for group in opt.groups] == [(0.25, 1.0), (0.25, 0.25)]
    assert opt.step(two()).lr == opt.lr == 0.25


@EVERY
@pytest.mark.parametrize("scheduled", [False, True])
def test_a_factor_multiplies_the_rate_of_every_rule(make, scheduled):
    """As if the group had that rate, bit for bit."""
    lr = rv.schedules.linear(0.3, 0.1, 4) if scheduled else 0.3
    here, there = two(), two()
    opt = make(here, lr=lr, weight_decay=0.01, groups=[("b", {"lr_scale": 0.7})])
    other = make(there, lr=lr, weight_decay=0.01, groups=[("b", {"lr": lr * 0.7})])
    for t in range(5):
        opt.step(grads(t))
        other.step(grads(t))
        assert opt.groups["b"]["lr"] == opt.lr == (lr(t) if scheduled else lr)
    for name in here:
        assert_same_bits(here[name], there[name], name)
    assert not np.array_equal(here["b"], two()["b"])


@pytest.mark.parametrize("kind", [rv.Muon, rv.Adafactor])
def test_a_factor_multiplies_the_rate_of_whole_matrices(kind):
    here, there = two(), two()
    opt = kind(here, lr=rv.schedules.linear(0.3, 0.1, 4), groups=[("b", {"lr_scale": 0.7})])
    other = kind(
        there, lr=rv.schedules.linear(0.3, 0.1, 4), groups=[("b", {"lr": rv.schedules.linear(0.3, 0.1, 4) * 0.7})]
    )
    for t in range(3):
        opt.step(grads(t))
        other.step(grads(t))
    for name in here:
        assert_same_bits(here[name], there[name], name)


def test_a_factor_is_the_same_on_a_gpu_and_under_a_loss_scale(gpu):
    here, there = two(), two(gpu)
    a, b = (rv.AdamW(p, lr=rv.schedules.linear(0.3, 0.1, 4), groups=[("b", {"lr_scale": 0.7})]) for p in (here, there))
    for t in range(3):
        a.step(grads(t), grad_scale=2.0)
        b.step(grads(t, gpu), grad_scale=2.0)
    for name in here:
        assert_same_bits(there[name].get(), here[name], name)


def test_a_factor_is_set_from_the_next_step_on():
    w = two()
    opt = rv.SGD(w, lr=rv.schedules.constant(0.5), groups=[("b", {"lr_scale": 0.5})])
    opt.step(two())
    opt.groups["b"]["lr_scale"] = 0.0
    b = w["b"].copy()
    opt.step(two())
    assert np.array_equal(w["b"], b)
    opt.groups["w"]["lr_scale"] = 2.0
    assert opt.step(two()).lr == 1.0
    assert (opt.lr, opt.groups["w"]["lr"], opt.groups["w"]["lr_scale"]) == (0.5, 0.5, 2.0)


def test_scale_lr_multiplies_numbers_and_the_factors_of_schedules():
    s = rv.schedules.linear(0.3, 0.1, 4)
    w, expected = two(), two()
    opt = rv.SGD(w, lr=s, groups=[("b", {"lr": 0.25})])
    other = rv.SGD(expected, lr=s * 0.7, groups=[("b", {"lr": 0.25 * 0.7})])
    opt.scale_lr(0.7)
    assert [(group["lr"], group["lr_scale"]) for group in opt.groups] == [(0.3, 0.7), (0.25 * 0.7, 1.0)]
    for t in range(3):
        assert opt.step(grads(t)).lr == other.step(grads(t)).lr
        assert opt.lr == s(t)
    for name in w:
        assert_same_bits(w[name], expected[name], name)


@pytest.mark.parametrize(
    ("factor", "error", "words"),
    [
        (-1.0, ValueError, "factor: expected a finite number > 0, got -1"),
        (0, ValueError, "factor: expected a finite number > 0, got 0"),
        (float("nan"), ValueError, "factor: expected a finite number > 0, got nan"),
        (1e300, ValueError, "lr: expected"),
        ("0.1", TypeError, "factor: expected a number, got '0.1'"),
        (rv.schedules.constant(1.0), TypeError, "factor: expected a number"),
        (None, TypeError, "factor: expected a number, got None"),
    ],
    ids=str,
)
def test_a_wrong_factor_changes_nothing(factor, error, words):
    opt = rv.SGD({"w": np.ones(2, np.float32), "b": np.ones(2)}, lr=1e-30, groups=[("b", {"lr": 1e10})])
    with pytest.raises(error, match=words):
        opt.scale_lr(factor)
    assert [group["lr"] for group in opt.groups] == [1e-30, 1e10]


@pytest.mark.parametrize(
    ("factor", "error", "words"),
    [
        (-0.5, ValueError, "lr_scale: expected a finite number >= 0, got -0.5"),
        (float("inf"), ValueError, "lr_scale: expected a finite number >= 0, got inf"),
        ("1", TypeError, "lr_scale: expected a number, got '1'"),
        (rv.schedules.constant(1.0), TypeError, "lr_scale: expected a number"),
    ],
    ids=str,
)
def test_a_wrong_lr_scale_is_refused(factor, error, words):
    with pytest.raises(error, match=words):
        rv.SGD(two(), lr=0.1, groups=[("b", {"lr_scale": factor})])
    opt = rv.SGD(two(), lr=0.1, groups=[("b", {"lr_scale": 0.5})])
    with pytest.raises(error, match=words):
        opt.groups["b"]["lr_scale"] = factor
    assert (opt.groups["b"]["lr_scale"], opt._engine.hyper(1, "lr")) == (0.5, 0.05)


def test_lr_itself_is_checked_whatever_its_factor():
    with pytest.raises(ValueError, match="lr: expected a finite number >= 0, got -1"):
        rv.SGD(two(), lr=-1.0, groups=[("*", {"lr_scale": 0.0})])
    opt = rv.SGD(np.ones(2, np.float32), lr=1e30, groups=[("*", {"lr_scale": 0.5})])
    with pytest.raises(ValueError, match=r"lr: .*times lr_scale"):
        rv.SGD(np.ones(2, np.float32), lr=1e30, groups=[("*", {"lr_scale": 1e30})])
    with pytest.raises(ValueError, match=r"lr_scale: with 1e\+30, lr: "):
        opt.groups[0]["lr_scale"] = 1e30
    with pytest.raises(TypeError, match=r"lr: expected a number, got '0\.1'"):
        opt.lr = "0.1"
    with pytest.raises(TypeError, match="lr: expected a number, got"):
        opt.lr = rv.schedules.constant(0.5)


def test_a_schedule_in_the_way_names_the_cure():
    opt = rv.SGD(two(), lr=rv.schedules.constant(0.5))
    with pytest.raises(ValueError, match=r"lr: a schedule sets it; .*opt\.scale_lr\(f\)"):
        opt.lr = 0.1
    with pytest.raises(ValueError, match=r"lr: the schedule .* sets it; .*lr_scale"):
        opt.groups[0]["lr"] = 0.1


@pytest.mark.parametrize("scheduled", [False, True])
def test_factors_are_saved_pickled_and_copied(tmp_path, scheduled):
    pytest.importorskip("safetensors")
    lr = rv.schedules.linear(0.3, 0.1, 9) if scheduled else 0.3

    def make():
        return rv.Adam(two(), lr=lr, groups=[("b", {"lr_scale": 0.7})])

    opt = make()
    opt.step(grads(0))
    opt.groups["b"]["lr_scale"] = 0.3
    opt.scale_lr(0.9)
    opt.step(grads(1))
    opt.save(tmp_path / "run")
    resumed = make()
    message = resumed.load(tmp_path / "run").message
    assert "lr_scale of 'b': 0.3, was 0.7" in message or scheduled
    others = [resumed, pickle.loads(pickle.dumps(opt)), copy.deepcopy(opt)]
    for other in others:
        assert [group["lr_scale"] for group in other.groups] == [group["lr_scale"] for group in opt.groups]
    opt.step(grads(2))
    for other in others:
        other.step(grads(2))
        for a, b in zip(other._engine.parameters, opt._engine.parameters, strict=True):
            assert_same_bits(a, b, "after loading")
    assert resumed.groups["b"]["lr"] == opt.groups["b"]["lr"]


def test_files_without_factors_load_as_one(tmp_path):
    pytest.importorskip("safetensors")
    opt = rv.SGD(two(), lr=0.5)
    opt.save(tmp_path / "run")
    assert b"lr_scale" not in (tmp_path / "run").read_bytes()
    other = rv.SGD(two(), lr=0.5, groups=[("*", {"lr_scale": 0.5})])
    assert other.load(tmp_path / "run").restored == ("lr_scale: 1.0, was 0.5",)
    assert (other.groups[0]["lr_scale"], other.step(two()).lr) == (1.0, 0.5)


def test_trials_keep_the_ratios_of_groups():
    w = {"w": np.array([1.0]), "b": np.array([1.0])}
    opt = rv.SGD(w, lr=0.3, groups=[("b", {"lr_scale": 0.7})])
    other = rv.SGD({k: v.copy() for k, v in w.items()}, lr=0.3, groups=[("b", {"lr": 0.3 * 0.7})])

    def loss(p):
        return 0.5 * (p["w"] ** 2).sum() + 0.5 * (p["b"] ** 2).sum(), {k: v.copy() for k, v in p.items()}

    found = [rv.lr_range_test(loss, o.params, o, steps=30, lr_min=1e-3, lr_max=1.0) for o in (opt, other)]
    np.testing.assert_allclose(found[0].losses, found[1].losses, rtol=1e-13)
    assert (opt.lr, opt._engine.hyper(1, "lr"), opt.groups[1]["lr"]) == (0.3, 0.3 * 0.7, 0.3)


def test_the_formula_and_repr_show_the_factor():
    groups = [("*", {"lr_scale": 0.5})]
    assert rv.SGD(two(), lr=0.5, groups=groups).formula().endswith("γ = 0.25")
    s = rv.schedules.linear(0.5, 0.25, 4)
    assert rv.SGD(two(), lr=s, groups=groups).formula().endswith("γ = 0.5·(linear(0.5, 0.25, 4))")
    assert "lr_scale=0.5" in repr(rv.SGD(two(), lr=s, groups=groups))
    opt = rv.SignSGD(two(), lr=s, groups=[("b", {"lr_scale": 0.5})])
    assert repr(opt.groups[1]) == "Group(['b'], lr=0.5, weight_decay=0.0, l2=0.0, lr_scale=0.5)"
    with pytest.raises(KeyError, match="did you mean 'lr_scale'"):
        opt.groups[0]["lr_scal"]
    assert opt.groups[0]["lr_scale"] == 1.0


# ---------------------------------------------------------------------------------------------------------------------
# C12: what is on is shown

SHOWN = {
    "clip_norm": (1.5, "clip_norm=1.5"),
    "clip_value": (2.5, "clip_value=2.5"),
    "nonfinite": ("skip", "nonfinite='skip'"),
    "average": (rv.EMA(0.75), "average=EMA(decay=0.75, warmup=True, start=0, every=1)"),
    "lookahead": (rv.Lookahead(3, 0.25), "lookahead=Lookahead(k=3, alpha=0.25)"),
    "master": ("float32", "master='float32'"),
    "states": ("bfloat16", "states='bfloat16'"),
    "maximize": (True, "maximize=True"),
    "correction": ("current", "correction='current'"),
    "lr": (rv.schedules.cosine(0.5, 9), "lr=cosine(0.5, 9)"),
    "groups": ([("b", {"lr": 0.25, "weight_decay": 0.5})], "groups=[(['b'], {'lr': 0.25, 'weight_decay': 0.5})]"),
}


@pytest.mark.parametrize("name", SHOWN)
def test_repr_shows_what_is_on_and_not_what_is_off(name):
    value, text = SHOWN[name]
    params = {key: w.astype(np.float32) for key, w in two().items()}
    assert text in repr(rv.Adam(params, **{name: value}))
    assert f" {name}=" not in repr(rv.Adam(params)) or name == "lr"


def test_repr_shows_rounding_and_clip_eps():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    opt = rv.Adam(np.ones(2, bfloat16), rounding="stochastic", clip_norm=1.0, clip_eps=0.5)
    assert "rounding='stochastic'" in repr(opt)
    assert "clip_norm=1.0, clip_eps=0.5" in repr(opt)


OPTIONS = {*rv.optimizers.OptionsButDecay.__annotations__, *rv.optimizers.Options.__annotations__}


CLASSES = [cls for name in rv.__all__ if isinstance(cls := getattr(rv, name), type) and rv.Optimizer in cls.__mro__[1:]]


@pytest.mark.parametrize("cls", CLASSES)
def test_the_help_of_each_class_lists_all_that_it_takes(cls):
    doc = inspect.getdoc(cls)
    refused = {"l2"} if "``l2`` is refused" in doc else set()
    taken = {*inspect.signature(cls).parameters, *OPTIONS} - {"options"} - refused
    for option in taken:
        assert len(re.findall(rf"^    (?:\w+, )*{option}(?:, \w+)*: ", doc, re.MULTILINE)) == 1, option
    assert doc.index("Args:") < doc.index("Options:") < doc.index("Raises:")


def test_a_users_class_keeps_its_docstring():
    class Own(rv.SGD):
        """Mine."""

    assert Own.__doc__ == "Mine."


# ---------------------------------------------------------------------------------------------------------------------
# C11: what an argument should have been

WRONG = {
    "a dict of groups": (
        {"groups": {"b": {"lr": 0.5}}},
        TypeError,
        r"groups: expected pairs.*pass list\(groups\.items\(\)\)",
    ),
    "a triple": ({"groups": [("b", {}, 1)]}, TypeError, r"groups\[0\]: expected pairs"),
    "a number as a pattern": ({"groups": [("w", {}), (0, {})]}, TypeError, r"groups\[1\]: expected pairs"),
    "a rate alone": ({"groups": [("b", 0.5)]}, TypeError, r"groups\[0\]: expected pairs"),
    "an index": (
        {"groups": [("c[0]", {"lr": 0.5})]},
        ValueError,
        r"'c\[0\]' matches none of .*did you mean 'c\.0'.*set of char",
    ),
    "a misspelt pattern": ({"groups": [("ww", {"lr": 0.5})]}, ValueError, r"did you mean 'w'"),
    "learning_rate": ({"learning_rate": 0.5}, TypeError, "unknown option 'learning_rate'; did you mean 'lr'"),
    "beta_1": ({"beta_1": 0.5}, TypeError, "did you mean 'betas'"),
    "epsilon": ({"epsilon": 0.5}, TypeError, "did you mean 'eps'"),
    "momentum": ({"momentum": 0.5}, TypeError, "did you mean 'betas'"),
    "weight_decay_rate": ({"weight_decay_rate": 0.5}, TypeError, "did you mean 'weight_decay'"),
    "clipnorm": ({"clipnorm": 0.5}, TypeError, "did you mean 'clip_norm'"),
    "betas of one": ({"betas": (0.9,)}, ValueError, r"betas: expected two numbers"),
    "one beta": ({"betas": 0.9}, ValueError, r"betas: expected two numbers"),
    "a text as a rate": ({"lr": "0.1"}, TypeError, "lr: expected a number or a schedule, got '0.1'"),
    "a text as a limit": ({"clip_norm": "1"}, TypeError, "clip_norm: expected a number or None, got '1'"),
    "a scheduled limit": (
        {"clip_value": lambda step: 1.0},
        TypeError,
        "clip_value: expected a number, got the schedule .*the same for all steps",
    ),
}


@pytest.mark.parametrize(("options", "error", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_argument_is_named_with_what_was_expected(options, error, words):
    with pytest.raises(error, match=words):
        rv.Adam({**two(), "c": [np.ones(2)]}, **options)


@pytest.mark.parametrize(
    "make", [rv.SGD, rv.RMSprop, partial(rv.SGD, like="torch"), partial(rv.Adam, like="keras"), rv.Muon]
)
@pytest.mark.parametrize("groups", [{"b": {"lr": 0.5}}, [("b", 0.5)], ["b"], "b"])
def test_groups_that_are_no_pairs_are_refused_by_every_class(make, groups):
    with pytest.raises(TypeError, match=r"groups.*: expected pairs"):
        make(two(), lr=0.1, groups=groups)


@pytest.mark.parametrize("params", [None, "w", Path("run.safetensors")], ids=str)
def test_what_are_no_parameters_is_named(params):
    with pytest.raises(TypeError, match="params: expected arrays, or a nesting of dict, list and tuple of arrays, got"):
        rv.AdamW(params)


def test_a_net_in_the_place_of_its_parameters_is_named():
    net = rv.nn.Sequential(rv.nn.Linear(2, 3, 0), rv.nn.Tanh())
    for layer in (net, net.layers[0]):
        with pytest.raises(
            TypeError, match=rf"params: expected arrays, got a {type(layer).__name__}; pass its .params"
        ):
            rv.AdamW(layer)


def test_a_loss_in_the_place_of_gradients_is_named():
    opt = rv.AdamW({"w": np.ones(2)})
    with pytest.raises(TypeError, match=r"got a tuple \(number, …\) such as \(loss, grads\); pass the second"):
        opt.step((0.5, {"w": np.ones(2)}))
    for loss in (0.5, np.float32(0.5)):
        with pytest.raises(TypeError, match=r"gradients nested like .* got the number 0.5; not the loss"):
            opt.step(loss)
    assert opt.steps == 0


# ---------------------------------------------------------------------------------------------------------------------
# C8: construction in proportion to what it is given


@pytest.mark.parametrize("pattern", ["layer{}.*", "*{}.w", "?ayer{}.?", "layer{}.w"])
def test_a_pattern_is_tried_on_names_that_hold_its_longest_part(pattern, monkeypatch):
    names = [f"layer{i}.{kind}" for i in range(10_000) for kind in "wb"]
    tried = 0

    class Counted:
        def __init__(self, text):
            self.pattern = re.compile(text)

        def match(self, name):
            nonlocal tried
            tried += 1
            return self.pattern.match(name)

    monkeypatch.setattr(groups, "re", SimpleNamespace(compile=Counted, escape=re.escape, finditer=re.finditer))
    patterns = [pattern.format(i) for i in range(9000, 10_000)]
    found = groups.matches(names, patterns)
    assert [len(of) for of in found] == [1 if "w" in pattern else 2] * 1000
    assert tried <= 4 * len(patterns)


def test_columns_of_one_matrix_are_told_apart_without_asking_for_each_pair(monkeypatch):
    asked = 0

    def counted(a, b):
        nonlocal asked
        asked += 1
        return exact(a, b)

    exact = np.shares_memory
    monkeypatch.setattr(np, "shares_memory", counted)
    matrix, vector = np.zeros((3, 4000)), np.zeros(12_000)
    for views in ([matrix[:, i] for i in range(4000)], [vector[i::4000] for i in range(4000)]):
        rv.SGD(views, lr=0.1).step([np.ones(3)] * 4000)
        assert asked == 0
        with pytest.raises(ValueError, match=r"params\['7'\] and params\['4000'\] share memory"):
            rv.SGD([*views, views[7][:1]], lr=0.1)
        assert asked <= 4
        asked = 0
