"""Steps, one-off updates and norms on a device: byte for byte what the CPU's kernels give, for every rule."""

import copy
import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ravine as rv
from ravine.averages import after_rule
from ravine.cuda.step import WORDS, Engine
from tests.conftest import LAYERWISE, RULES, a_device, assert_same_bits, engine, hyper_sets, zero_states
from tests.test_bits import HYPER, finite, numbers
from tests.test_rules import CASES, FORMS, PIPELINES, label

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
#: Every pair of a parameter's and a gradient's dtype that a step takes.
KINDS = [
    (np.dtype(parameter), np.dtype(gradient))
    for parameter, gradient in [
        ("float64", "float64"),
        ("float32", "float32"),
        ("float32", "float16"),
        ("float32", BFLOAT16),
        ("float16", "float16"),
        (BFLOAT16, BFLOAT16),
    ]
]
ALL = PIPELINES["all"]

every_rule = pytest.mark.parametrize("rule", RULES)
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))


def device_engine(
    device,
    rule,
    params,
    hyper,
    *,
    clip_value=None,
    clip_norm=None,
    nonfinite="propagate",
    after=None,
    clip_eps=0.0,
    states=None,
    rounding="nearest",
    **common,
):
    """Bind any rule to parameters on the device: the counterpart of `tests.conftest.engine`."""
    made = Engine(
        device,
        rule,
        params,
        lambda names: [0] * len(names),
        lambda p, dtype: zero_states(rule, p.shape, dtype, device.xp, states),
        clip_value,
        clip_norm,
        nonfinite,
        after_rule(device.xp.zeros, **(after or {})),
        clip_eps,
        states=states,
        rounding=rounding,
    )
    for name, value in {**hyper, **common}.items():
        made.set_hyper(0, name, value)
    return made


def gentle(shape, dtype, seed=0):
    """Numbers whose squares are finite in every dtype."""
    wide = np.nan_to_num(numbers(shape, dtype, seed).astype(np.float64))
    return np.asarray(np.clip(wide, -3, 3).astype(dtype))


def as_numbers(state):
    """A state in bfloat16 as such: NumPy knows its bits only."""
    return state.view(BFLOAT16) if state.dtype == np.uint16 else state


def assert_same_steps(device, rule, params, gradients, hyper, on_device=None, **pipeline):
    """Step copies of the parameters on both, and compare all that there is after each step."""
    put = on_device or device.xp.asarray
    names = [name for name, *_ in rv._core.state_arrays(rule, (), "float32", pipeline.get("states"))]
    here, there = copy.deepcopy(params), [put(p) for p in params]
    own, made = engine(rule, here, hyper, **pipeline), device_engine(device, rule, there, hyper, **pipeline)
    for step, of_step in enumerate(gradients):
        expected = own.step(of_step)
        got = made.step([None if g is None else put(g) for g in of_step])
        what = f"{rule}, step {step}"
        assert repr(got) == repr(expected), what
        assert made.updates == own.updates, what
        for i, (a, b) in enumerate(zip(there, here, strict=True)):
            assert_same_bits(a.get(), b, f"{what}, parameter {i}")
        for i, (a, b) in enumerate(zip(made.states, own.states, strict=True)):
            for name, ours, theirs in zip(names, a, b, strict=True):
                assert_same_bits(*map(as_numbers, (ours.get(), theirs)), f"{what}, state {name} of {i}")
        for i, (a, b) in enumerate(zip(made.kept, own.kept, strict=True)):
            assert list(a) == list(b)
            for name, theirs in b.items():
                assert_same_bits(a[name].get(), theirs, f"{what}, {name} of {i}")
    return made


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("case", CASES, ids=label)
def test_every_rule_equals_the_cpu(gpu_device, case, pipeline):
    rule, hyper = case
    gradients = [[numbers(203, np.float32, seed)] for seed in (1, 2, 3)]
    if pipeline == "all":
        gradients = [[np.nan_to_num(g, posinf=1e3)] for (g,) in gradients]
    assert_same_steps(gpu_device, rule, [numbers(203, np.float32)], gradients, hyper, **PIPELINES[pipeline])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", ["adam", "sgd", "adan", "rmsprop_centered_momentum"])
def test_every_form_of_decay_and_clipping_equals_the_cpu(gpu_device, rule, form):
    gradients = [[gentle(203, np.float32, seed)] for seed in (1, 2, 3)]
    assert_same_steps(gpu_device, rule, [numbers(203, np.float32)], gradients, HYPER[rule], **FORMS[form])


@every_rule
def test_nan_and_infinities_go_through_every_stage(gpu_device, rule):
    gradients = [[numbers(203, np.float32, seed)] for seed in (1, 2)]
    stages = {"clip_value": 0.9, "l2": 0.1, "weight_decay": 0.2, "maximize": True}
    assert_same_steps(gpu_device, rule, [numbers(203, np.float32)], gradients, HYPER[rule], **stages)


@every_rule
@every_kind
def test_every_dtype_equals_the_cpu(gpu_device, rule, kind):
    parameter, gradient = kind
    shapes = [(), (1,), (7, 5), (0, 3), (4097,), (31, 33)]
    params = [numbers(shape, parameter, i) for i, shape in enumerate(shapes)]
    gradients = [[finite(p.shape, gradient, seed + i) for i, p in enumerate(params)] for seed in (10, 20)]
    assert_same_steps(gpu_device, rule, params, gradients, HYPER[rule], **ALL)


@every_rule
def test_all_dtypes_in_one_list_are_one_launch(gpu_device, rule):
    params = [numbers((60 + i,), parameter, i) for i, (parameter, _) in enumerate(KINDS)]
    gradients = [[numbers(p.shape, g, 9 + i) for i, (p, (_, g)) in enumerate(zip(params, KINDS, strict=True))]]
    made = assert_same_steps(gpu_device, rule, params, gradients * 2, HYPER[rule], weight_decay=0.1)
    if launches := getattr(gpu_device, "launches", None):
        launches.clear()
        made.step([gpu_device.xp.asarray(g) for g in gradients[0]])
        before = ["gauge", "settle"] if rule in LAYERWISE else []
        assert [name for name in launches if name != "poke"] == [*before, "step"]


@pytest.mark.parametrize("rule", ["adam", "sgd", "rmsprop_centered_momentum", "lamb"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16], ids=lambda dtype: dtype.__name__)
def test_every_length_and_every_alignment(gpu_device, rule, dtype):
    for n in [*range(1, 36), 63, 64, 65, 127, 129, 4095, 4096, 4097, 8192, 12_289]:
        around = numbers(n + 9, dtype)
        for at in (0, 1, 3, 4) if n < 70 else (0, 1):
            base = gpu_device.xp.asarray(around)
            slots = itertools.cycle([base[at : at + n], gpu_device.xp.asarray(numbers(n + 1, dtype, 1))[1:]])
            w, g = around[at : at + n].copy(), numbers(n + 1, dtype, 1)[1:]
            assert_same_steps(gpu_device, rule, [w], [[g]], HYPER[rule], lambda x: next(slots), weight_decay=0.1)  # noqa: B023
            after = base.get()
            assert_same_bits(after[:at], around[:at], "what lies before")
            assert_same_bits(after[at + n :], around[at + n :], "what lies behind")


def strided(xp, x, how):
    """The values of x in another memory layout."""
    x = xp.asarray(x)
    match how:
        case "transposed":
            return xp.ascontiguousarray(x.T).T
        case "reversed":
            return xp.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1]
        case "gaps":
            base = xp.zeros((2 * x.shape[0], 3 * x.shape[1]), x.dtype)
            base[::2, ::3] = x
            return base[::2, ::3]
    return x


@every_rule
@pytest.mark.parametrize("layout", ["transposed", "reversed", "gaps"])
def test_strided_arrays_have_the_same_bits(gpu_device, rule, layout):
    params = [numbers((67, 45), np.float32), numbers((130, 64), np.float16, 5)]
    gradients = [[finite(p.shape, p.dtype, seed) for p in params] for seed in (1, 2)]
    xp = gpu_device.xp
    assert_same_steps(gpu_device, rule, params, gradients, HYPER[rule], lambda x: strided(xp, x, layout), **ALL)


@pytest.mark.parametrize("layout", ["plain", "shifted", "transposed", "gaps"])
def test_what_follows_the_rule_equals_the_cpu_for_any_length_and_layout(gpu_device, layout):
    after = {"lookahead": rv.Lookahead(3, 0.3), "average": rv.SWA(start=1, every=2), "master": "float32"}
    shapes = [(n,) for n in [1, 3, 4, 7, 8, 9, 31, 33, 4095, 4096, 4097, 8200]]
    shapes = [(67, 45), (130, 64)] if layout in ("transposed", "gaps") else shapes
    dtypes = [np.dtype(np.float16), BFLOAT16, np.dtype(np.float32), np.dtype(np.float64)]
    params = [numbers(shape, dtype, i) for i, (shape, dtype) in enumerate(itertools.product(shapes, dtypes))]
    gradients = [[numbers(p.shape, p.dtype, seed) for p in params] for seed in range(1, 6)]
    gradients[2][::5] = [None] * len(gradients[2][::5])
    xp = gpu_device.xp

    def put(x):
        if layout != "shifted":
            return strided(xp, x, layout)
        base = xp.zeros(len(x) + 3, x.dtype)
        base[3:] = xp.asarray(x)
        return base[3:]

    assert_same_steps(gpu_device, "adam", params, gradients, HYPER["adam"], put, weight_decay=0.1, after=after)


@pytest.mark.parametrize("which", range(4))
def test_one_strided_array_among_contiguous_ones(gpu_device, which):
    arrays = [np.abs(gentle((64, 96), np.float32, seed)) for seed in range(4)]
    there = [strided(gpu_device.xp, x, "transposed" if i == which else "plain") for i, x in enumerate(arrays)]
    rv.functional.adamw_(*arrays, step=3, lr=0.1)
    rv.functional.adamw_(*there, step=3, lr=0.1)
    for got, expected in zip(there, arrays, strict=True):
        assert_same_bits(got.get(), expected)


def test_broadcast_gradients_and_many_axes(gpu_device):
    xp = gpu_device.xp
    w = numbers((3, 4, 5, 6, 7), np.float32)
    g = finite((3, 1, 5, 1, 7), np.float32, 1)
    here, there = w.transpose(4, 1, 3, 0, 2).copy(), xp.asarray(w).transpose(4, 1, 3, 0, 2)
    a, b = rv.Adam(here), rv.Adam(there)
    a.step(np.broadcast_to(g, w.shape).transpose(4, 1, 3, 0, 2))
    b.step(xp.broadcast_to(xp.asarray(g), w.shape).transpose(4, 1, 3, 0, 2))
    assert_same_bits(there.get(), here)


def test_more_axes_than_fit_are_refused_before_anything_changes(gpu_device):
    xp = gpu_device.xp
    base = xp.ones((3,) * 9, np.float32)
    opt = rv.SGD(xp.zeros((2,) * 9, np.float32), lr=0.1)
    with pytest.raises(ValueError, match=r"more than 8 axes that do not merge; pass x\.copy\(\)"):
        opt.step(base[(slice(0, 2),) * 9])
    assert opt.steps == 0


# The list: gradients that come and go, groups, counts.


def test_parameters_without_a_gradient_stay_as_they_are(gpu_device):
    params = [numbers((n,), np.float32, n) for n in (5, 4100, 0, 77)]
    g = [gentle(p.shape, np.float32, i + 50) for i, p in enumerate(params)]
    gradients = [[g[0], None, g[2], g[3]], [None, None, g[2], None], g, [None, g[1], None, None], g]
    for clip_norm, nonfinite in [(None, "propagate"), (0.7, "propagate"), (0.7, "skip")]:
        made = assert_same_steps(
            gpu_device, "adam", params, gradients, HYPER["adam"], clip_norm=clip_norm, nonfinite=nonfinite
        )
        assert made.steps == 5


@pytest.mark.parametrize("make", [rv.AdamW, rv.LAMB, rv.Adafactor])
def test_a_step_without_gradients_and_one_on_used_gradients_raise(gpu_device, make):
    layer = rv.nn.Linear(3, 2, 0)
    params = {name: gpu_device.xp.asarray(p) for name, p in layer.params.items()}
    layer.params = params
    opt, x = make(params), gpu_device.xp.asarray(np.ones((4, 3), np.float32))
    for step in (1, 2):
        before = [p.get() for p in params.values()]
        with pytest.raises(ValueError, match="expected at least one gradient" if step == 1 else "used by a step"):
            opt.step(layer.grads)
        for p, old in zip(params.values(), before, strict=True):
            assert_same_bits(p.get(), old)
        layer.backward(layer(x))
        assert opt.step(layer.grads).step == step
    assert opt.step(dict(layer.grads)).step == 3


def test_no_parameters_at_all(gpu_device):
    assert rv.AdamW({}, clip_norm=1.0).step({}).step == 1
    opt = rv.AdamW([gpu_device.xp.zeros((0,), np.float32)], clip_norm=1.0)
    info = opt.step([gpu_device.xp.zeros((0,), np.float32)])
    assert (info.step, info.grad_norm) == (1, 0.0)


def test_groups_and_schedules(gpu_device):
    xp = gpu_device.xp
    schedule = rv.schedules.warmup(3) * rv.schedules.cosine(0.1, 10)
    groups = [("*.b", {"weight_decay": 0.0, "lr": 0.02}), ("out.*", {"l2": 0.3, "maximize": True})]
    tree = {"in": {"w": numbers((40, 30), np.float32), "b": numbers(30, np.float32, 1)}, "out": {"w": finite(9, "f8")}}
    there = rv.trees.map(xp.asarray, tree)
    here = copy.deepcopy(tree)
    a = rv.AdamW(here, lr=schedule, weight_decay=0.2, groups=groups)
    b = rv.AdamW(there, lr=schedule, weight_decay=0.2, groups=groups)
    for seed in range(6):
        g = rv.trees.map(lambda w: finite(w.shape, w.dtype, seed), tree)  # noqa: B023
        ours, theirs = b.step(rv.trees.map(xp.asarray, g)), a.step(g)
        assert repr(ours) == repr(theirs)
        assert b.lr == a.lr
    for (name, x), y in zip(rv.trees.leaves(there).items(), rv.trees.leaves(here).values(), strict=True):
        assert_same_bits(x.get(), y, name)


def test_a_schedule_is_one_more_small_launch(gpu_device):
    if not hasattr(gpu_device, "launches"):
        pytest.skip("a GPU does not count launches")
    xp = gpu_device.xp
    w = [xp.asarray(finite(50, np.float32, i)) for i in range(5)]
    g = [xp.asarray(finite(50, np.float32, 5 + i)) for i in range(5)]
    for lr, names in [(0.1, ["step"]), (rv.schedules.cosine(0.1, 9), ["poke", "step"])]:
        opt = rv.AdamW(w, lr=lr)
        opt.step(g)
        gpu_device.launches.clear()
        opt.step(g)
        assert gpu_device.launches == names
    opt = rv.AdamW(w, clip_norm=1.0, nonfinite="skip")
    opt.step(g)
    gpu_device.launches.clear()
    opt.step(g)
    assert gpu_device.launches == ["measure", "judge", "step"]
    opt.step([x.copy() for x in g])
    assert gpu_device.launches[3:] == ["poke", "measure", "judge", "step"]


def test_a_thousand_tensors(gpu_device):
    params = [finite((1 + i % 37,), np.float32, i) for i in range(1000)]
    gradients = [[finite(p.shape, np.float32, 1000 + i) for i, p in enumerate(params)] for _ in range(2)]
    assert_same_steps(gpu_device, "adam", params, gradients, HYPER["adam"], clip_norm=1.0)


def test_many_tensors_of_several_groups(gpu_device):
    """A block of threads takes several: it must not change its row while one of them still reads the old one."""
    params = [finite((5 + i % 300,), np.float32, i) for i in range(200)]
    there = [gpu_device.xp.asarray(w) for w in params]
    groups = [("*3", {"lr": 0.2}), ("*7", {"weight_decay": 0.5}), ("*4", {"l2": 0.3})]
    a, b = rv.AdamW(params, groups=groups), rv.AdamW(there, groups=groups)
    for step in range(3):
        g = [None if (i + step) % 5 == 0 else gentle(w.shape, np.float32, 300 + i) for i, w in enumerate(params)]
        a.step(g)
        b.step([None if x is None else gpu_device.xp.asarray(x) for x in g])
        for i, (x, y) in enumerate(zip(there, params, strict=True)):
            assert_same_bits(x.get(), y, (step, i))


# What is not finite.


@pytest.mark.parametrize("rule", ["adam", "sgd", "lion"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))
def test_a_step_that_is_skipped_leaves_everything(gpu_device, rule, kind):
    params = [finite((n,), kind[0], n) for n in (300, 9000, 2)]
    good = [[gentle(p.shape, kind[1], seed + i) for i, p in enumerate(params)] for seed in (3, 30)]
    bad = copy.deepcopy(good[0])
    bad[1][[8191, 17, 8999]] = [np.nan, np.inf, -np.inf]
    bad[2][1] = np.nan
    for options in ({}, {"clip_norm": 0.5}, {"clip_value": 0.1}):
        gradients = [good[0], bad, bad, good[1]]
        made = assert_same_steps(gpu_device, rule, params, gradients, HYPER[rule], nonfinite="skip", **options)
        assert made.steps == 2


def test_what_is_not_finite_is_found_in_each_of_many_tensors(gpu_device):
    """A block of threads judges several: what its warps have found in one must be read before they write the next."""
    n = 33 * 4096 + 10  # the second warp has blocks, too
    gradients = [np.ones(n, np.float16) for _ in range(34)]
    for i, g in enumerate(gradients):
        g[n - 5 - i :: 3] = np.nan if i % 3 else 1
    params = [np.zeros(n, np.float16) for _ in gradients]
    for clip_norm in (None, 1.0):
        assert_same_steps(gpu_device, "sgd", params, [gradients], HYPER["sgd"], nonfinite="skip", clip_norm=clip_norm)


def test_raise_names_what_is_not_finite_as_on_the_cpu(gpu_device):
    xp = gpu_device.xp
    w, g = finite(500, np.float32), gentle(500, np.float32, 1)
    g[[40, 499]] = [np.nan, 2e19]
    a, b = rv.Adam({"w": w.copy()}, nonfinite="raise"), rv.Adam({"w": xp.asarray(w)}, nonfinite="raise")
    messages = []
    for opt, gradient in ((a, g), (b, xp.asarray(g))):
        with pytest.raises(FloatingPointError) as caught:
            opt.step({"w": gradient})
        messages.append(str(caught.value))
        assert (opt.steps, opt._engine.updates) == (0, [0])
    assert messages[0] == messages[1]
    assert "{'w': (2, 40)}" in messages[0]
    assert_same_bits(b._engine.parameters[0].get(), w)


def test_info_is_remembered_for_some_steps_and_then_says_so(gpu_device):
    xp = gpu_device.xp
    w = xp.asarray(finite(30, np.float32))
    opt = rv.SGD(w, lr=0.1, clip_norm=1.0, nonfinite="skip")
    infos, norms = [], []
    for seed in range(20):
        g = gentle(30, np.float32, seed)
        norms.append(rv.global_norm(g))
        infos.append(opt.step(xp.asarray(g)))
    assert [info.grad_norm for info in infos[4:]] == norms[4:]
    assert [info.step for info in infos[4:]] == list(range(5, 21))
    with pytest.raises(RuntimeError, match="only the last 16 steps are remembered"):
        _ = infos[3].grad_norm


# Norms.


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, BFLOAT16], ids=str)
@pytest.mark.parametrize("shapes", [[(1,)], [(63,), (65,)], [(4096,), (4097,), (0,), (3, 5000)], [(70_001,)]], ids=str)
def test_norms_and_clipping_equal_the_cpu(gpu_device, dtype, shapes):
    tree = {f"g{i}": finite(shape, dtype, i) for i, shape in enumerate(shapes)} | {"none": None}
    there = {name: None if g is None else gpu_device.xp.asarray(g) for name, g in tree.items()}
    norm = rv.global_norm(there)
    assert norm.shape == ()
    assert norm.dtype == np.float64
    assert_same_bits(norm.get(), np.float64(rv.global_norm(tree)))
    for limit in (1e300, 0.37):
        before = rv.clip_by_global_norm_(there, limit)
        assert_same_bits(before.get(), np.float64(rv.clip_by_global_norm_(tree, limit)))
        for name, g in tree.items():
            if g is not None:
                assert_same_bits(there[name].get(), g, name)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_norms_that_are_not_finite(gpu_device, value):
    g = finite(5000, np.float32)
    g[4321] = value
    there = gpu_device.xp.asarray(g)
    assert_same_bits(rv.clip_by_global_norm_([there], 1.0).get(), np.float64(rv.clip_by_global_norm_([g], 1.0)))
    assert_same_bits(there.get(), g)


def test_strided_norms(gpu_device):
    g = finite((67, 130), np.float32)
    for layout in ("transposed", "reversed", "gaps"):
        there = strided(gpu_device.xp, g, layout)
        assert_same_bits(rv.global_norm(there).get(), np.float64(rv.global_norm(g)), layout)


# One-off updates.


@every_rule
@every_kind
def test_functions_equal_the_cpu(gpu_device, rule, kind):
    xp, dtype = gpu_device.xp, np.float64 if kind[0] == np.float64 else np.float32
    for shape, layout in [((5000,), "plain"), ((60, 71), "transposed"), ((), "plain")]:
        p, g = numbers(shape, kind[0]), numbers(shape, kind[1], 1)
        shapes = {"scalar": ((), np.float64)}
        states = [
            (name, np.asarray(np.abs(gentle(*shapes.get(moment, (shape, dtype)), 2))))
            for name, moment in RULES[rule]["states"].items()
        ]
        there = [strided(xp, x, layout if x.ndim else "plain") for x in (p, g, *(state for _, state in states))]
        hyper = [*HYPER[rule].items(), ("weight_decay", 0.1), ("l2", 0.2), ("maximize", 1.0)]
        for t in (1, 2, 1_000_003):
            rv._core.apply(rule, hyper, t, p, g, states)
            named = [(name, x) for (name, _), x in zip(states, there[2:], strict=True)]
            rv.backends.backend_of(there[0]).apply(rule, hyper, t, there[0], there[1], named)
            for got, expected in zip(there, [p, g, *(state for _, state in states)], strict=True):
                assert_same_bits(got.get(), expected, f"{rule}, {shape}, t = {t}")


def test_the_functional_face(gpu_device):
    xp = gpu_device.xp
    arrays = [np.abs(gentle(40, np.float32, seed)) for seed in range(4)]
    there = [xp.asarray(x) for x in arrays]
    rv.functional.adamw_(*arrays, step=3, lr=0.1)
    rv.functional.adamw_(*there, step=3, lr=0.1)
    for a, b in zip(there, arrays, strict=True):
        assert_same_bits(a.get(), b)


@every_rule
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_whatever_the_list(rule, data):
    # No fixture: hypothesis would use one of them for all examples.
    with pytest.MonkeyPatch.context() as patch:
        device = a_device(patch)
        shapes = data.draw(st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), min_size=1, max_size=5))
        kinds = [data.draw(st.sampled_from(KINDS)) for _ in shapes]
        params = [numbers(shape, kind[0], i) for i, (shape, kind) in enumerate(zip(shapes, kinds, strict=True))]
        # A step in which none is there raises.
        there = st.lists(st.booleans(), min_size=len(params), max_size=len(params)).filter(any)
        gradients = [
            [
                finite(p.shape, kind[1], 7 * step + i) if present else None
                for i, (p, kind, present) in enumerate(zip(params, kinds, data.draw(there), strict=True))
            ]
            for step in range(2)
        ]
        options = data.draw(st.sampled_from([{}, ALL, {"nonfinite": "skip", "clip_norm": 0.1}]))
        assert_same_steps(device, rule, params, gradients, next(hyper_sets(rule)), **options)


# Capture, streams, threads, state.


def test_a_captured_step_can_be_replayed(gpu_device):
    if not hasattr(gpu_device, "is_capturing"):
        pytest.skip("on a GPU: test_cuda_graph.py")
    xp = gpu_device.xp
    w, g = finite(300, np.float32), gentle(300, np.float32, 1)
    there, gradient = xp.asarray(w), xp.asarray(g)
    here, opt = rv.Adam(w, lr=0.1, clip_norm=0.5, nonfinite="skip"), None
    opt = rv.Adam(there, lr=0.1, clip_norm=0.5, nonfinite="skip")
    opt.step(gradient)
    gpu_device.is_capturing = True
    recorded = []
    launch = gpu_device.launch
    gpu_device.launch = lambda kernel, blocks, threads, args: recorded.append((kernel, blocks, threads, args.copy()))
    opt.step(gradient)
    gpu_device.is_capturing, gpu_device.launch = False, launch
    assert [kernel.name for kernel, *_ in recorded] == ["measure", "judge", "step"]
    for _ in range(4):
        for arguments in recorded:
            launch(*arguments)
    opt.lr = 0.03
    for arguments in recorded:
        launch(*arguments)
    for _ in range(5):
        here.step(g)
    here.lr = 0.03
    here.step(g)
    assert opt.steps == 6
    assert opt._engine.updates == [6]
    assert_same_bits(there.get(), w)


def test_info_of_a_captured_step_without_a_verdict(gpu_device):
    if not hasattr(gpu_device, "is_capturing"):
        pytest.skip("on a GPU: test_cuda_graph.py")
    w = gpu_device.xp.ones(3, np.float32)
    opt = rv.SGD(w, lr=0.1)
    opt.step(w.copy())
    gpu_device.is_capturing = True
    info = opt.step(w.copy())  # which the stand-in runs
    gpu_device.is_capturing = False
    assert (info.step, opt.steps, info.skipped, info.nonfinite, info.grad_norm) == (2, 2, False, None, None)


def test_answers_wait_for_the_stream_of_the_last_step(gpu_device):
    if not hasattr(gpu_device, "waits"):
        pytest.skip("on a GPU: test_cuda_graph.py")
    w = gpu_device.xp.ones(3, np.float32)
    opt = rv.Adam(w, lr=0.1, clip_norm=1.0)
    for stream, ask in enumerate(
        [lambda info: info.grad_norm, lambda _: opt.state_dict(), lambda _: opt._engine.updates]
    ):
        gpu_device.stream, gpu_device.waits = 10 + stream, []
        info = opt.step(w.copy())
        gpu_device.stream, gpu_device.waits = 20 + stream, []
        ask(info)
        assert gpu_device.waits == [(20 + stream, 10 + stream)]


def test_what_cannot_be_captured_is_refused(gpu_device):
    if not hasattr(gpu_device, "is_capturing"):
        pytest.skip("on a GPU: test_cuda_graph.py")
    w = gpu_device.xp.ones(3, np.float32)
    gpu_device.is_capturing = True
    with pytest.raises(RuntimeError, match="a captured step cannot ask a schedule"):
        rv.SGD(w, lr=rv.schedules.cosine(0.1, 5)).step(w.copy())
    with pytest.raises(RuntimeError, match="looks at every answer"):
        rv.SGD(w, lr=0.1, nonfinite="raise").step(w.copy())
    assert_same_bits(w.get(), np.ones(3, np.float32))


def test_a_step_waits_for_the_stream_of_the_step_before(gpu_device):
    if not hasattr(gpu_device, "waits"):
        pytest.skip("on a GPU: test_cuda_graph.py")
    w = gpu_device.xp.ones(3, np.float32)
    opt = rv.SGD(w, lr=0.1)
    for stream in (1, 1, 2, 2, 1):
        gpu_device.stream = stream
        opt.step(w.copy())
    assert gpu_device.waits == [(2, 1), (1, 2)]


def test_a_second_thread_is_refused(gpu_device):
    w = gpu_device.xp.ones(3, np.float32)
    opt = rv.SGD(w, lr=0.1)
    with pytest.raises(RuntimeError, match="another thread is inside a step"):
        opt._engine._lock.hold(lambda: opt.step(w.copy()))
    assert opt.steps == 0


@pytest.mark.parametrize("make", [rv.AdamW, rv.RMSprop, rv.Lion])
def test_state_moves_between_cpu_and_device(gpu_device, make):
    xp = gpu_device.xp
    w = {"a": finite((30, 7), np.float32), "b": [finite(9, np.float64, 1)]}
    g = [{"a": finite((30, 7), np.float32, seed), "b": [finite(9, np.float64, seed)]} for seed in (2, 3, 4, 5)]
    unbroken = copy.deepcopy(w)
    opt = make(unbroken)
    for of_step in g:
        opt.step(of_step)
    here = copy.deepcopy(w)
    first = make(here)
    first.step(g[0])
    there = rv.trees.map(xp.asarray, here)
    second = make(there)
    second.load_state_dict(first.state_dict())
    for of_step in g[1:3]:
        second.step(rv.trees.map(xp.asarray, of_step))
    back = rv.trees.map(lambda x: x.get(), there)
    third = make(back)
    third.load_state_dict(second.state_dict())
    third.step(g[3])
    assert third.steps == 4
    for (name, x), y in zip(rv.trees.leaves(back).items(), rv.trees.leaves(unbroken).values(), strict=True):
        assert_same_bits(x, y, name)


def test_large_counts_of_updates(gpu_device):
    w, g = finite(20, np.float32), finite(20, np.float32, 1)
    there = gpu_device.xp.asarray(w)
    own, made = engine("adam", w, HYPER["adam"]), device_engine(gpu_device, "adam", there, HYPER["adam"])
    for opt in (own, made):
        opt.set_counters(2**53 + 1, [2**40 + 3])
    assert own.step(g).step == made.step(gpu_device.xp.asarray(g)).step == 2**53 + 2
    assert made.updates == [2**40 + 4]
    assert_same_bits(there.get(), w)


def test_the_description_of_an_array_has_the_kernels_size():
    words = rv._core.norm_tables([("x", np.zeros((4, 6))[:, ::2])], False)[0]
    assert len(words) == WORDS
    assert words[1:7].tolist() == [12, 0, 0, 1, 12, 0]
