"""pickle, copy.copy and copy.deepcopy: an independent twin that goes on bit for bit, of everything public."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest

import ravine as rv
import ravine.thinc
from tests.test_state import OPTIMIZERS

F32, BF16 = np.float32, ml_dtypes.bfloat16


def pickled(x):
    return pickle.loads(pickle.dumps(x))


WAYS = {
    "pickle": pickled,
    "pickle 2": lambda x: pickle.loads(pickle.dumps(x, 2)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}
every_way = pytest.mark.parametrize("twin_of", WAYS.values(), ids=WAYS)


def tree(seed=0, xp=np, dtype=None):
    rng = np.random.default_rng(seed)

    def of(kind, *shape):
        return xp.asarray(rng.standard_normal(shape).astype(dtype or kind))

    return {"a": of(np.float64, 3, 4), "b": [of(F32, 5), of(np.float16, 2, 3)], "c": of(F32, 4, 3).T, "d": of(F32)}


def run(opt, first, last, xp=np, dtype=None, **options):
    infos = []
    for t in range(first, last):
        grads = tree(t, xp, dtype)
        if t % 3 == 2:
            grads["a"] = None  # so that the counters differ
        infos.append(repr(opt.step(grads, **options)))
    return infos


def everything(opt):
    """All that an optimizer is, as bytes and texts."""
    engine = opt._engine
    kept = [array for of in engine.kept for array in of.values()]
    arrays = [*engine.parameters, *(state for states in engine.states for state in states), *kept]
    numbers = [[engine.hyper(g, name) for name in opt._flat_values(g)] for g in range(len(opt._values))]
    host = [(a.dtype.name, a.shape, a.tobytes()) for a in map(rv.to_host, arrays)]
    return host, opt.steps, list(engine.updates), numbers, repr(opt), opt.lr, engine.accumulated


def alike_and_apart(opt, twin, **options):
    """The twin is as the optimizer is, shares nothing with it, and goes the same way."""
    assert type(twin) is type(opt)
    assert everything(twin) == everything(opt)
    before = everything(opt)
    expected = run(copy.deepcopy(opt), 6, 11, **options)
    assert everything(opt) == before
    assert run(twin, 6, 11, **options) == expected
    assert everything(opt) == before, "the twin shares something with its original"
    run(opt, 6, 11, **options)
    assert everything(twin) == everything(opt)


@every_way
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_rule(name, twin_of):
    opt = OPTIMIZERS[name](tree(), lr=rv.schedules.cosine(0.1, 20), clip_norm=2.0, nonfinite="skip")
    run(opt, 1, 6)
    alike_and_apart(opt, twin_of(opt))


@every_way
@pytest.mark.parametrize("kind", [rv.Adafactor, rv.Muon])
def test_rules_of_whole_matrices(kind, twin_of):
    params = {name: leaf for name, leaf in tree().items() if name in ("a", "c")}
    opt = kind(params, lr=0.01, weight_decay=0.1)

    def steps(opt, first, last):
        for t in range(first, last):
            opt.step({name: tree(t)[name] for name in params})
        return everything(opt)

    steps(opt, 1, 4)
    twin = twin_of(opt)
    assert everything(twin) == everything(opt)
    before = everything(opt)
    assert steps(twin, 4, 7) != before
    assert everything(opt) == before
    assert steps(opt, 4, 7) == everything(twin)


SCHEDULE = rv.schedules.warmup(4) * rv.schedules.cosine(0.1, 30)
OPTIONS = {
    "groups and schedules": {
        "lr": SCHEDULE,
        "groups": [("b.*", {"lr": rv.schedules.exponential(0.05, 0.9)}), ("c", {"weight_decay": 0.25, "lr": 0.02})],
        "betas": (rv.schedules.linear(0.9, 0.8, 9), 0.99),
    },
    "all limits": {"clip_norm": 0.5, "clip_value": 0.9, "nonfinite": "raise", "l2": 0.01, "clip_eps": 1e-6},
    "lookahead": {"lookahead": rv.Lookahead(k=3, alpha=0.25)},
    "EMA": {"average": rv.EMA(0.9, start=2, every=2)},
    "SWA": {"average": rv.SWA(start=1)},
    "like": {"like": "torch"},
    "switches": {"amsgrad": True, "maximize": True, "decay_after": True, "weight_decay": 0.1},
}
LOW = {
    "master": {"master": "float32"},
    "split": {"master": "split"},
    "8bit": {"states": "8bit", "average": rv.EMA(0.9)},
    "bfloat16": {"states": "bfloat16", "lookahead": rv.Lookahead(2)},
    "stochastic": {"rounding": "stochastic"},
}


@every_way
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option(options, twin_of):
    opt = rv.Adam(tree(), **options)
    run(opt, 1, 6)
    opt.groups[0]["eps"] = 1e-5
    alike_and_apart(opt, twin_of(opt))


@every_way
@pytest.mark.parametrize("options", LOW.values(), ids=LOW)
def test_low_precision(options, twin_of):
    opt = rv.Adam(tree(dtype=BF16), lr=0.01, **options)
    run(opt, 1, 6, dtype=BF16)
    opt.params["a"][0, 0] = 3  # from outside, which the exact copy learns of
    alike_and_apart(opt, twin_of(opt), dtype=BF16)


@every_way
def test_torchs_groups(twin_of):
    groups = [{"params": [np.ones(2), np.ones(3)], "lr": 0.1}, {"params": {"w": np.ones(1)}, "lr": 0.2}]
    opt = rv.SGD(groups, lr=0.5, momentum=0.9)
    assert opt.params is groups
    grads = [[np.ones(2), np.ones(3)], {"w": np.ones(1)}]
    opt.step(grads)
    twin = twin_of(opt)
    assert [group["lr"] for group in twin.params] == [0.1, 0.2]
    for one in (opt, twin):
        one.step(grads)
    assert everything(twin) == everything(opt)
    twin.params[0]["params"] = [np.ones(2), np.ones(3)]
    with pytest.raises(ValueError, match="was replaced"):
        twin.step(grads)
    opt.step(grads)


@every_way
def test_accumulated_gradients_are_copied(twin_of, gpu):
    for xp, weight in ((np, 1.0), (np, 3.0), (gpu, 0.1)):
        opt = rv.Adam({"w": xp.ones(3, F32), "v": xp.ones(2, F32), "h": xp.ones(2, np.float16)}, lr=0.1)
        micro = {
            "w": xp.asarray(np.array([0.1, 0.2, 0.3], F32)),
            "v": None,
            "h": xp.asarray(np.array([1, 2], np.float16)),
        }
        opt.accumulate(micro, weight=weight)
        opt.accumulate(micro, weight=7.0)
        twin = twin_of(opt)
        assert everything(twin) == everything(opt)
        twin.accumulate(micro, weight=0.5)
        assert twin._engine.accumulated != opt._engine.accumulated
        opt.accumulate(micro, weight=0.5)
        for one in (opt, twin):
            one.step()
        assert everything(twin) == everything(opt)


@every_way
def test_sparse_gradients_go_on(twin_of):
    opt = rv.Adam({"table": np.ones((6, 2), F32), "w": np.ones(2, F32)}, lr=0.1)

    def step(one):
        one.step({"table": rv.RowSparse(np.array([1, 4]), np.ones((2, 2), F32)), "w": np.ones(2, F32)})

    step(opt)
    twin = twin_of(opt)
    step(twin)
    step(opt)
    assert everything(twin) == everything(opt)


@every_way
def test_cupys_arrays(gpu, twin_of):
    opt = rv.AdamW(tree(xp=gpu), lr=SCHEDULE, clip_norm=1.0, average=rv.EMA(0.9), nonfinite="skip")
    run(opt, 1, 6, gpu)
    twin = twin_of(opt)
    assert isinstance(twin.params["a"], gpu.ndarray)
    alike_and_apart(opt, twin, xp=gpu)


@pytest.mark.parametrize("both", [pickled, copy.deepcopy])
def test_parameters_that_are_copied_with_the_optimizer_stay_its_own(both):
    params = tree()
    opt = rv.Adam(params, lr=0.1)
    run(opt, 1, 3)
    for pair in (both((params, opt)), both((opt, params))[::-1], both({"p": params, "o": opt}).values()):
        ours, twin = pair
        assert twin.params is ours
        before = ours["a"].copy()
        run(twin, 3, 5)
        assert (ours["a"] != before).all()
    net = rv.nn.Sequential(rv.nn.Linear(2, 3, np.random.default_rng(0)), rv.nn.ReLU())
    opt = rv.SGD(net.params, lr=0.1)
    twin_net, twin = both((net, opt))
    twin.step([{"weight": np.ones((2, 3), F32), "bias": np.ones(3, F32)}, {}])
    assert (twin_net.params[0]["bias"] != 0).all()
    assert (net.params[0]["bias"] == 0).all()


@pytest.mark.parametrize("name", ["lr", "weight_decay"])
def test_a_function_that_pickle_cannot_name_is_named(name):
    opt = rv.SGD({"w": np.ones(2)}, **{"lr": 0.1, name: lambda t: 0.1})
    with pytest.raises(pickle.PicklingError, match=rf"^{name} of groups\[0\]: <function .*<lambda>.* ravine.schedules"):
        pickle.dumps(opt)
    twin = copy.deepcopy(opt)  # which copies no function
    twin.step({"w": np.ones(2)})
    assert (opt.steps, twin.steps) == (0, 1)


def test_a_copy_of_averages_in_the_parameters_place_is_refused():
    opt = rv.SGD(np.ones(2), lr=0.1, average=rv.SWA())
    opt.step(np.ones(2))
    with opt.averaged_parameters(), pytest.raises(RuntimeError, match="copy: the averages stand"):
        copy.deepcopy(opt)


@every_way
def test_a_parameter_that_has_no_copy_is_named(twin_of):
    opt = rv.SGD({"w": memoryview(bytearray(12)).cast("f")}, lr=0.5)
    with pytest.raises(TypeError, match=r"^copy: params\['w'\]: a memoryview"):
        twin_of(opt)


class Own(rv.SGD):
    """A user's class with something of its own."""

    def __init__(self, params):
        super().__init__(params, lr=0.1, momentum=0.9)
        self.note = ["mine"]


@every_way
def test_a_users_subclass(twin_of):
    opt = Own({"w": np.ones(2)})
    opt.step({"w": np.ones(2)})
    twin = twin_of(opt)
    twin.note.append("twin's")
    assert (type(twin), opt.note, twin.note) == (Own, ["mine"], ["mine", "twin's"])
    assert everything(twin) == everything(opt)


# What belongs to a run besides.


@every_way
def test_step_info(twin_of, gpu):
    for xp in (np, gpu):
        opt = rv.SGD({"w": xp.ones(3)}, lr=0.1, clip_norm=1.0, nonfinite="skip")
        for bad in (1.0, np.nan):
            info = opt.step({"w": xp.asarray(np.array([1.0, bad, 2.0]))})
            twin = twin_of(info)
            assert repr(twin) == repr(info)
            assert (twin.step, twin.lr, twin.skipped, twin.nonfinite) == (1, 0.1, np.isnan(bad), info.nonfinite)
            if info.nonfinite:
                twin.nonfinite["other"] = (1, 0)
                assert info.nonfinite == {"w": (1, 1)}
    matrix = rv.Muon({"w": np.ones((2, 2))}, lr=0.1)
    rows = rv.SGD({"w": np.ones((3, 2))}, lr=0.1, nonfinite="skip")
    sparse = rows.step({"w": rv.RowSparse(np.array([2]), np.array([[1.0, np.nan]]))})
    for info in (matrix.step({"w": np.ones((2, 2))}), sparse):
        assert repr(twin_of(info)) == repr(info)


@every_way
def test_history(twin_of, gpu):
    for xp in (np, gpu):
        opt, history = rv.SGD({"w": xp.ones(2)}, lr=0.1, clip_norm=1.0), rv.History()
        for _ in range(3):
            history.record(opt.step({"w": xp.ones(2)}), loss=xp.ones(()))
        twin = twin_of(history)
        assert repr(twin) == repr(history)
        with pytest.raises(ValueError, match="again at the same step"):
            twin.record(loss=1.0)
        twin.record(validation=2.0)
        twin.record(step=9, loss=5.0)
        assert len(history) == 3
        assert "validation" not in history
        assert twin["loss"].values.tolist() == [1, 1, 1, 5]


def test_a_history_goes_on_from_its_state():
    history = rv.History()
    for t in range(50):
        history.record(step=t, b=0.1 * t, **({"a": np.nan} if t % 3 else {}))
    history.record(late=1)
    for other in (rv.History(), copy.deepcopy(history)):
        other.record(step=0, other=1.0)
        other.load_state_dict(history.state_dict())
        assert repr(other) == repr(history)
        for name in history.names:
            for one, two in zip(history[name], other[name], strict=True):
                assert one.tobytes() == two.tobytes()
        with pytest.raises(ValueError, match="again at the same step"):
            other.record(late=2)
        other.record(step=100, b=1)
    assert len(history) == 51


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"steps": [0.5]},
        {"rows": [7]},
        {"rows": [-1]},
        {"values": []},
        {"counts": [2]},
        {"counts": [0]},
        {"names": []},
        {"values": ["x"]},
        {"open": 3},
    ],
    ids=str,
)
def test_what_is_no_state_of_a_history_is_refused(change):
    history = rv.History()
    history.record(step=1, loss=0.5)
    before = repr(history)
    with pytest.raises(ValueError, match=r"state: expected what state_dict\(\) returned.*Nothing was loaded"):
        history.load_state_dict(history.state_dict() | change)
    assert repr(history) == before


@every_way
def test_loss_scales(twin_of, gpu):
    for xp in (np, gpu):
        opt, scale = rv.SGD(xp.ones(2, np.float16), lr=0.5), rv.DynamicLossScale(2**10, growth_interval=3)
        for bad in (1, np.inf, 1):
            opt.step(xp.asarray(np.full(2, bad, np.float16)), grad_scale=scale)
        twin = twin_of(scale)
        assert twin.state_dict() == scale.state_dict() == {"format": 1, "value": 512.0, "good_steps": 1}
        # It belongs to no optimizer yet.
        other = rv.SGD(xp.ones(2, np.float16), lr=0.5)
        for _ in range(2):
            other.step(xp.ones(2, np.float16), grad_scale=twin)
        assert float(twin.value) == 1024
        assert scale.state_dict()["good_steps"] == 1
        both = pickled((opt, scale)) if twin_of is not copy.copy else (copy.copy(opt), twin_of(scale))
        both[0].step(xp.ones(2, np.float16), grad_scale=both[1])
        opt.step(xp.ones(2, np.float16), grad_scale=scale)
        assert both[1].state_dict() == scale.state_dict()
        assert everything(both[0]) == everything(opt)


@every_way
def test_groups(twin_of):
    opt = rv.SGD({"w": np.ones(2), "b": np.ones(2)}, lr=0.5, groups=[("b", {"lr": 0.25})])
    groups, group = twin_of(opt.groups), twin_of(opt.groups["b"])
    assert (repr(groups), repr(group)) == (repr(opt.groups), repr(opt.groups["b"]))
    groups[1]["lr"] = 7.0
    group["lr"] = 8.0
    assert (opt.groups["b"]["lr"], groups["b"]["lr"], group["lr"]) == (0.25, 7.0, 8.0)


@every_way
@pytest.mark.parametrize(
    "value",
    [
        rv.EMA(0.5, start=3),
        rv.SWA(every=2),
        rv.Lookahead(3, 0.25),
        SCHEDULE,
        SCHEDULE.then(rv.schedules.piecewise([2], [0.5, 0.25]) + 1.0),
        rv.Curve(np.arange(2), np.ones(2)).steps.tolist(),
    ],
    ids=repr,
)
def test_settings(value, twin_of):
    assert twin_of(value) == value
    assert repr(twin_of(value)) == repr(value)


@every_way
def test_standardize_and_sparse_rows(twin_of):
    x = np.arange(6.0).reshape(3, 2)
    fitted = rv.data.Standardize().fit(x)
    assert twin_of(fitted).transform(x).tobytes() == fitted.transform(x).tobytes()
    rows = rv.RowSparse(np.array([1]), np.ones((1, 2)))
    assert twin_of(rows).indices.tolist() == [1]


@every_way
def test_thincs_optimizer(twin_of):
    opt, w = ravine.thinc.Adam(0.1, use_averages=True), np.ones(3, F32)
    opt((1, "W"), w, np.ones(3, F32))
    twin, v = twin_of(opt), w.copy()
    twin((1, "W"), v, np.full(3, 2, F32))
    twin((1, "W"), v, np.full(3, 2, F32))
    opt((1, "W"), w, np.full(3, 2, F32))
    opt((1, "W"), w, np.full(3, 2, F32))
    assert v.tobytes() == w.tobytes()
    assert opt.averages[1, "W"].tobytes() == twin.averages[1, "W"].tobytes()
