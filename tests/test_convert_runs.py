"""Runs of torch and optax that go on here: from stored states of theirs, and from the libraries where installed."""

import json
from typing import Any, NamedTuple

import numpy as np
import pytest

import ravine as rv
from tests.conftest import assert_same_bits
from tests.reference.make_golden_conventions import CASES, DTYPES, FILE, HALF, KEPT, halved, keys

with np.load(FILE) as file:
    GOLDEN = {key: file[key] for key in file.files}
ABOUT = json.loads(str(GOLDEN["meta"]))["about"]
#: What was stored in mid-run.
RUNS = [(key, case) for key, case in zip(keys(), CASES, strict=True) if key in ABOUT]
TORCH = [(key, case) for key, case in RUNS if case[0] == "torch"]
OPTAX = [(key, case) for key, case in RUNS if case[0] == "optax"]


class Tensor:
    """What of torch's tensors is needed here: memory that DLPack gives, and a shape."""

    def __init__(self, array):
        self._array, self.shape = array, array.shape

    def __dlpack__(self, **arguments):
        return self._array.__dlpack__(**arguments)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


def torch_like(name, groups, states):
    """Make what looks like torch.optim's, with tensors in groups and the states of each by its number."""

    def state_dict(self):
        number = iter(range(len(states)))
        packed = [{**group, "params": [next(number) for _ in group["params"]]} for group in groups]
        return {"param_groups": packed, "state": {i: state for i, state in enumerate(states) if state}}

    return type(name, (), {"param_groups": groups, "state_dict": state_dict})()


def named(name, *fields):
    """Make a kind of optax's states."""
    return NamedTuple(name, [(field, Any) for field in fields])


def states_of(key, dtype):
    """Give the arrays that were stored of a case."""
    prefix = f"{key}/{dtype}/"
    return {k.removeprefix(prefix): v for k, v in GOLDEN.items() if k.startswith(prefix)}


def half(key, dtype):
    """Give the parameters in mid-run."""
    return GOLDEN[f"{key}/{dtype}"][KEPT.index(HALF)].copy()


def assert_goes_on(opt, w, key, dtype, wrap):
    """Take the second half, and compare with the system's."""
    expected = dict(zip(KEPT, GOLDEN[f"{key}/{dtype}"], strict=True))
    top = np.maximum(np.abs(w), np.abs(GOLDEN["w"]).astype(w.dtype))
    for t, g in enumerate(GOLDEN["gradients"][HALF:], HALF + 1):
        opt.step(wrap(g.astype(dtype)))
        top = np.maximum(top, np.abs(w))
        if t in expected:
            # In mid-run nothing is lost to 1 − 0.999ᵗ any more than there.
            assert np.max(np.abs(w - expected[t]) / np.spacing(top)) <= (40 if key == "torch.AdamW.1" else 10)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("key, case", TORCH, ids=[key for key, _ in TORCH])
def test_a_stored_run_of_torch_goes_on_to_a_few_ulps(key, case, dtype):
    _, name, given, _, here = case
    later, _ = halved(name, given)
    group = ABOUT[key] | ({} if later is None else {"lr": later})
    states = {k: Tensor(v) if v.shape else v for k, v in states_of(key, dtype).items()}
    w = half(key, dtype)
    source = torch_like(name, [{**group, "params": [Tensor(w)]}], [states])
    clip = {"clip_norm": here["clip_norm"]} if "clip_norm" in here else {}
    opt = rv.convert.from_torch(source, **clip)
    assert opt.lr == group["lr"]
    assert opt.steps == (HALF if "step" in states else bool(states))
    assert_goes_on(opt, w, key, dtype, lambda g: [g])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("key, case", OPTAX, ids=[key for key, _ in OPTAX])
def test_a_stored_run_of_optax_goes_on_to_a_few_ulps(key, case, dtype):
    _, name, given, cls, here = case
    later, _ = halved(name, given)
    leaves = states_of(key, dtype)

    def rebuilt(about):
        if isinstance(about, dict):
            return named(about["type"], *about["fields"])(*map(rebuilt, about["fields"].values()))
        return tuple(map(rebuilt, about)) if isinstance(about, list) else leaves[about]

    w = half(key, dtype)
    settings = here | ({} if later is None else {"lr": later})
    opt = rv.convert.from_optax(getattr(rv, cls), rebuilt(ABOUT[key]), w, **settings)
    assert opt.steps == (HALF if any(k.endswith(("count", ".t")) for k in leaves) else 1)
    assert_goes_on(opt, w, key, dtype, lambda g: g)


def test_every_class_with_a_line_has_a_stored_run_to_go_on_from():
    assert {case[1] for _, case in TORCH} == set(rv.conventions.TABLE["torch"])
    assert {case[3] for _, case in OPTAX} == set(rv.conventions.TABLE["optax"])


# What torch's groups say.


def adam(groups, states=None):
    shared = {"lr": 0.1, "betas": (0.5, 0.75), "eps": 1e-3, "weight_decay": 0.0, "amsgrad": False, "maximize": False}
    groups = [{**shared, **group} for group in groups]
    return torch_like("Adam", groups, states or [{}] * sum(len(group["params"]) for group in groups))


def moments(n, step=3.0):
    return {"step": step, "exp_avg": np.full(n, 0.25), "exp_avg_sq": np.full(n, 0.5)}


def test_groups_of_torch_become_groups_and_names_stay():
    arrays = {"cx": np.ones(2), "a[0].w": np.ones(3), "c*": np.ones(1)}
    first, second = list(arrays)[:1], list(arrays)[1:]
    source = adam(
        [
            {"params": [arrays[n] for n in first], "param_names": first, "weight_decay": 0.5},
            {"params": [arrays[n] for n in second], "param_names": second, "lr": 0.25, "maximize": True},
        ],
        [moments(2), {}, moments(1, 7.0)],
    )
    opt = rv.convert.from_torch(source)
    state = opt.state_dict()
    assert state["updates"] == {"cx": 3, "a[0].w": 0, "c*": 7}
    assert opt.steps == 7
    np.testing.assert_array_equal(state["states"]["c*"]["v"], 0.5)
    np.testing.assert_array_equal(state["states"]["a[0].w"]["v"], 0.0)
    values = [opt._values[group] for group in opt._group_of]
    assert [v["lr"] for v in values] == [0.1, 0.25, 0.25]
    assert [v["l2"] for v in values] == [0.5, 0.0, 0.0]
    assert [bool(v["maximize"]) for v in values] == [False, True, True]
    opt.step({name: np.ones_like(w) for name, w in arrays.items()})
    assert (arrays["a[0].w"] > 1).all()  # in torch's own memory, and upwards


def test_parameters_of_ones_own_go_on_in_their_nesting():
    mine = {"layer": [np.zeros((2, 3)), np.zeros(3)]}
    source = adam([{"params": [np.ones((2, 3)), np.ones(3)]}], [moments((2, 3)), moments(3)])
    opt = rv.convert.from_torch(source, mine, clip_norm=1.0)
    assert list(opt.state_dict()["states"]) == ["layer.0", "layer.1"]
    with pytest.raises(ValueError, match=r"params: expected arrays of the shapes \[\(2, 3\), \(3,\)\], in this order"):
        rv.convert.from_torch(source, {"layer": [np.zeros(3), np.zeros((2, 3))]})


def test_states_are_copied_and_float16_ones_widened():
    state = {k: v.astype(np.float16) if k != "step" else v for k, v in moments(2).items()}
    opt = rv.convert.from_torch(adam([{"params": [np.ones(2, np.float16)]}], [state]))
    own = opt.state_dict()["states"]["0"]
    assert {k: v.dtype for k, v in own.items()} == {"m": np.float32, "v": np.float32}
    opt.step([np.ones(2, np.float16)])
    np.testing.assert_array_equal(state["exp_avg"], np.float16(0.25))


def test_decoupled_adam_is_adamw_and_coupled_adam_has_l2():
    one = rv.convert.from_torch(adam([{"params": [np.ones(1)], "weight_decay": 0.5, "decoupled_weight_decay": True}]))
    other = rv.convert.from_torch(adam([{"params": [np.ones(1)], "weight_decay": 0.5}]))
    assert (type(one), one._values[0]["weight_decay"], one._values[0]["l2"]) == (rv.AdamW, 0.5, 0.0)
    assert (type(other), other._values[0]["weight_decay"], other._values[0]["l2"]) == (rv.Adam, 0.0, 0.5)


def test_a_number_of_zero_is_no_default():
    opt = rv.convert.from_torch(adam([{"params": [np.ones(1)], "eps": 0.0, "lr": 0.0}]))
    assert (opt._values[0]["eps"], opt.lr) == (0.0, 0.0)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: torch_like("LBFGS", [], []), TypeError, "expected one of torch's SGD, .*, got LBFGS"),
        (
            lambda: adam([{"params": [np.ones(1)]}, {"params": [np.ones(1)], "amsgrad": True}]),
            ValueError,
            "groups differ in one of .*'amsgrad'",
        ),
        (
            lambda: torch_like("Adagrad", [{"params": [np.ones(1)], "lr": 0.1, "eps": 0.1, "lr_decay": 0.1}], [{}]),
            ValueError,
            "lr_decay: expected 0, got 0.1",
        ),
        (
            lambda: adam([{"params": [np.ones(1)]}], [{"step": 2.0, "exp_avg": np.ones(1)}]),
            ValueError,
            r"state of '0': expected v, which 'adam' needs, got \['m'\]",
        ),
        (
            lambda: adam([{"params": [np.ones(1)]}], [moments(2)]),
            ValueError,
            r"state of '0': expected m of shape \(1,\), got \(2,\)",
        ),
    ],
)
def test_what_does_not_fit_of_torch_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        rv.convert.from_torch(make())


# What optax's states say.

Adam = named("ScaleByAdamState", "count", "mu", "nu")
Trace = named("TraceState", "trace")
Injected = named("InjectStatefulHyperparamsState", "count", "hyperparams", "hyperparams_states", "inner_state")


def nested(value):
    return {"a": np.full(2, value), "b": [np.full(3, value)]}


def test_numbers_that_were_injected_are_taken_from_the_state():
    numbers = {"learning_rate": np.float32(0.25), "b1": 0.5, "b2": 0.75, "eps": 1e-3, "eps_root": 0.0}
    state = Injected(np.int32(3), numbers, {}, (Adam(np.int32(3), nested(0.25), nested(0.5)), ()))
    opt = rv.convert.from_optax(rv.Adam, state, nested(1.0), eps=0.5)
    values = opt._values[0]
    assert (opt.lr, values["betas"], values["eps"], opt.steps) == (0.25, (0.5, 0.75), 0.5, 3)
    assert list(opt.state_dict()["states"]) == ["a", "b.0"]


def test_a_fresh_state_is_a_fresh_run():
    start = 1e-6  # of optax.yogi, which is added in our first step
    state = (Adam(np.int32(0), nested(start), nested(start)), ())
    converted, fresh = nested(1.0), nested(1.0)
    one, other = rv.convert.from_optax(rv.Yogi, state, converted, lr=0.1), rv.Yogi(fresh, lr=0.1, like="optax")
    for _ in range(3):
        one.step(nested(0.3))
        other.step(nested(0.3))
    for a, b in zip(rv.trees.leaves(converted).values(), rv.trees.leaves(fresh).values(), strict=True):
        assert_same_bits(a, b)


def test_steps_that_are_not_counted_may_be_said():
    opt = rv.convert.from_optax(rv.SGD, (Trace(np.ones(2)), ()), np.ones(2), steps=7, lr=0.1, momentum=0.5)
    assert (opt.steps, opt.state_dict()["updates"]) == (7, {"params": 7})


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: (rv.Adam, (), {"lr": 0.1}), ValueError, "state: expected one ScaleByAdamState in it for Adam, got 0"),
        (
            lambda: (rv.Adam, [Adam(1, np.ones(2), np.ones(2))] * 2, {"lr": 0.1}),
            ValueError,
            "expected one ScaleByAdamState in it for Adam, got 2",
        ),
        (
            lambda: (rv.Adam, Adam(1, nested(1.0), nested(1.0)), {"lr": 0.1}),
            ValueError,
            r"ScaleByAdamState\.mu is of the parameters \['a', 'b\.0'\], params are \['params'\]",
        ),
        (lambda: (rv.Adam, Adam(1, np.ones(3), np.ones(3)), {"lr": 0.1}), ValueError, r"of shape \(2,\), got \(3,\)"),
        (lambda: (rv.Adam, Adam(1, np.ones(2), np.ones(2)), {}), TypeError, "lr: 'optax' .* has no default"),
        (lambda: (rv.Rprop, (), {}), ValueError, "like: 'optax' has no Rprop"),
    ],
)
def test_what_does_not_fit_of_optax_is_refused(make, error, message):
    cls, state, settings = make()
    with pytest.raises(error, match=message):
        rv.convert.from_optax(cls, state, np.ones(2), **settings)


# What a state holds besides: taken, or refused by name.

MultiSteps = named("MultiStepsState", "mini_step", "gradient_step", "inner_opt_state", "acc_grads", "skip_state")
Empty = named("EmptyState")


def multi_steps(mini_step, inner, gradients):
    return MultiSteps(np.int32(mini_step), np.int32(4), inner, gradients, {})


def test_pending_gradients_go_on_as_the_mean_of_their_micro_batches():
    """Of 4 micro-batches, 3 in the state with a mean of 2, and one of 6: the mean is 3."""
    w = nested(1.0)
    opt = rv.convert.from_optax(rv.SGD, multi_steps(3, Empty(), nested(2.0)), w, pending="mean", lr=0.5)
    assert opt.steps == 4
    opt.accumulate(nested(6.0))
    opt.step()
    for leaf in rv.trees.leaves(w).values():
        np.testing.assert_array_equal(leaf, 1.0 - 0.5 * 3.0)
    dropped = nested(1.0)
    opt = rv.convert.from_optax(rv.SGD, multi_steps(3, Empty(), nested(2.0)), dropped, pending="drop", lr=0.5)
    opt.accumulate(nested(6.0))
    opt.step()
    np.testing.assert_array_equal(dropped["a"], 1.0 - 0.5 * 6.0)


def test_pending_gradients_are_in_the_parameters_dtype():
    w = np.ones(2)
    state = multi_steps(1, Empty(), np.full(2, 2.0, np.float32))
    opt = rv.convert.from_optax(rv.SGD, state, w, pending="mean", lr=0.5)
    opt.step()
    np.testing.assert_array_equal(w, 0.0)


def test_nothing_pending_needs_no_word():
    opt = rv.convert.from_optax(rv.SGD, multi_steps(0, Empty(), np.zeros(2)), np.ones(2), lr=0.5)
    assert opt.steps == 4
    with pytest.raises(ValueError, match="step"):
        opt.step()


MOMENTS = Adam(np.int32(2), np.ones(2), np.ones(2))
BESIDES = {
    "pending gradients": (multi_steps(3, Empty(), np.ones(2)), {}, r"MultiStepsState holds the gradients of 3 micro-"),
    "an unknown choice": (multi_steps(3, Empty(), np.ones(2)), {"pending": "sum"}, "pending: expected 'mean', 'drop'"),
    "lookahead": (
        named("LookaheadState", "fast_state", "steps_since_sync")(Empty(), 2),
        {},
        "got LookaheadState as well, which has no place here",
    ),
    "an average of the updates": (
        (Trace(np.ones(2)), named("EmaState", "count", "ema")(2, np.ones(2))),
        {"momentum": 0.5},
        "got EmaState as well",
    ),
    "an average of the parameters": (named("EmaParamsState", "ema", "count")(np.ones(2), 2), {}, "got EmaParamsState"),
    "two rules": ((Trace(np.ones(2)), MOMENTS), {"momentum": 0.5}, "got ScaleByAdamState as well"),
    "a momentum that the class has not": (Trace(np.ones(2)), {}, "got TraceState as well"),
    "a rule for each part": (
        named("PartitionState", "inner_states")({"a": Empty()}),
        {},
        "got PartitionState as well",
    ),
    "noise": (named("AddNoiseState", "count", "rng_key")(2, np.ones(2)), {}, "got AddNoiseState as well"),
    "a mask": (
        named("MaskedState", "inner_state")(Empty()),
        {},
        "MaskedState: the mask is not in it: say",
    ),
    "steps that were left out": (
        named("ApplyIfFiniteState", "notfinite_count", "last_finite", "total_notfinite", "inner_state")(0, 1, 3, ()),
        {},
        "ApplyIfFiniteState: .* say nonfinite='skip'",
    ),
    "a schedule": (
        Injected(2, {"learning_rate": 0.1}, {"learning_rate": named("WrappedScheduleState", "count")(2)}, Empty()),
        {"lr": ...},
        "state: learning_rate is a schedule there, which it does not hold; pass lr=",
    ),
    "an unknown number": (
        Injected(2, {"learning_rate": 0.1, "threshold": 0.5}, {}, Empty()),
        {},
        r"inject_hyperparams holds {'threshold': 0.5}, which have no place here",
    ),
    "one beta": (Injected(2, {"b1": 0.8}, {}, Empty()), {}, "holds one of the betas, 0.8; pass betas="),
}


@pytest.mark.parametrize("state, settings, message", BESIDES.values(), ids=BESIDES)
def test_what_a_state_of_optax_holds_besides_is_refused_by_name(state, settings, message):
    given = {k: v for k, v in {"lr": 0.1, **settings}.items() if v is not ...}
    w = np.ones(2)
    with pytest.raises(ValueError, match=message):
        rv.convert.from_optax(rv.SGD, state, w, **given)
    assert (w == 1).all()


def test_what_the_state_does_not_hold_may_be_said():
    inner = named("MaskedState", "inner_state")(Empty())
    finite = named("ApplyIfFiniteState", "notfinite_count", "last_finite", "total_notfinite", "inner_state")
    schedule = named("ScaleByScheduleState", "count")
    state = finite(0, 1, 3, (MOMENTS, inner, schedule(np.int32(2))))
    opt = rv.convert.from_optax(rv.AdamW, state, np.ones(2), lr=0.1, groups=[], nonfinite="skip")
    assert opt.steps == 2
    rate = Injected(2, {"learning_rate": 0.1}, {"learning_rate": named("WrappedScheduleState", "count")(2)}, MOMENTS)
    assert rv.convert.from_optax(rv.Adam, rate, np.ones(2), lr=rv.schedules.constant(0.25)).lr == 0.25


def test_a_run_of_multi_steps_itself_goes_on():
    optax = pytest.importorskip("optax", reason="optax is not installed: make test-adapters")
    jax = pytest.importorskip("jax", reason="jax is not installed: make test-adapters")
    rule = optax.MultiSteps(optax.adam(0.1), every_k_schedule=4)
    p = {"w": jax.numpy.ones(3)}
    state = rule.init(p)
    gradients = np.random.default_rng(0).standard_normal((12, 3)).astype(np.float32)
    for g in gradients[:6]:
        update, state = rule.update({"w": g}, state, p)
        p = optax.apply_updates(p, update)
    mine = jax.tree.map(np.array, p)
    opt = rv.convert.from_optax(rv.Adam, state, mine, pending="mean", lr=0.1)
    for i, g in enumerate(gradients[6:], 7):
        update, state = rule.update({"w": g}, state, p)
        p = optax.apply_updates(p, update)
        opt.accumulate({"w": g})
        if i % 4 == 0:
            opt.step()
    np.testing.assert_allclose(mine["w"], np.asarray(p["w"]), rtol=1e-5)


def test_what_torch_holds_besides_is_refused_by_name():
    careful = adam([{"params": [np.ones(2)], "cautious": True}], [moments(2)])
    with pytest.raises(ValueError, match=r"its groups have \{'cautious': True\}; torch's Adam has none"):
        rv.convert.from_torch(careful)


# The libraries themselves.


def go_on_with_torch(torch, optimizer, p, opt, mine, steps):
    """Step both, and compare."""
    rng = np.random.default_rng(5)
    top = np.maximum(np.abs(mine), np.abs(GOLDEN["w"]))
    for _ in range(steps):
        g = rng.standard_normal(mine.shape)
        p.grad = torch.tensor(g)
        optimizer.step()
        opt.step([g])
        top = np.maximum(top, np.abs(mine))
    assert np.max(np.abs(p.detach().numpy() - mine) / np.spacing(top)) <= 40


@pytest.mark.parametrize("key, case", TORCH, ids=[key for key, _ in TORCH])
def test_a_run_of_torch_itself_goes_on(key, case):
    torch = pytest.importorskip("torch", reason="torch is not installed: make test-adapters")
    _, name, given, _, _ = case
    given = {k: v for k, v in given.items() if k != "clip"}
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # of what NAdam and ASGD keep beside the tensors
    try:
        p = torch.tensor(GOLDEN["w"], requires_grad=True)
        optimizer = getattr(torch.optim, name)([p], **given)
        for g in GOLDEN["gradients"][:5]:
            p.grad = torch.tensor(g.astype(np.float64))
            optimizer.step()
        mine = p.detach().numpy().copy()
        go_on_with_torch(torch, optimizer, p, rv.convert.from_torch(optimizer, [mine]), mine, 10)
    finally:
        torch.set_default_dtype(before)


def test_without_parameters_torchs_own_tensors_go_on():
    torch = pytest.importorskip("torch", reason="torch is not installed: make test-adapters")
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    before = model.weight.detach().clone()
    opt = rv.convert.from_torch(optimizer)
    assert list(opt.state_dict()["states"]) == ["weight", "bias"]
    opt.step({name: p.grad for name, p in model.named_parameters()})
    assert (model.weight != before).all()


@pytest.mark.parametrize("key, case", OPTAX, ids=[key for key, _ in OPTAX])
def test_a_run_of_optax_itself_goes_on(key, case):
    optax = pytest.importorskip("optax", reason="optax is not installed: make test-adapters")
    jax = pytest.importorskip("jax", reason="jax is not installed: make test-adapters")
    _, name, given, cls, here = case
    given, here = ({k: v for k, v in d.items() if k not in ("clip", "clip_norm")} for d in (given, here))
    make = optax
    for part in name.split("."):
        make = getattr(make, part)
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        rule = make(**given)
        p = {"w": jax.numpy.asarray(GOLDEN["w"])}
        state = rule.init(p)

        def advance(p, state, g):
            update, state = rule.update({"w": jax.numpy.asarray(g.astype(np.float64))}, state, p)
            return optax.apply_updates(p, update), state

        for g in GOLDEN["gradients"][:5]:
            p, state = advance(p, state, g)
        mine = jax.tree.map(np.array, p)
        opt = rv.convert.from_optax(getattr(rv, cls), state, mine, **here)
        top = np.abs(mine["w"])
        for g in GOLDEN["gradients"][5:]:
            p, state = advance(p, state, g)
            opt.step({"w": g.astype(np.float64)})
            top = np.maximum(top, np.abs(mine["w"]))
        assert np.max(np.abs(np.asarray(p["w"]) - mine["w"]) / np.spacing(top)) <= 40
    finally:
        jax.config.update("jax_enable_x64", before)
