"""States in fewer bytes on a device: byte for byte the CPU's, whatever the list, and whatever else is done."""

import ml_dtypes
import numpy as np
import pytest

import ravine as rv
from ravine.cuda.step import step_source
from tests.conftest import RULES, assert_same_bits, engine
from tests.test_bits import HYPER, finite, numbers
from tests.test_cuda_step import as_numbers, assert_same_steps, device_engine, gentle, strided

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
#: Around a thread's neighbours, the elements that share a scale, and a block of threads.
LENGTHS = (1, 31, 255, 256, 257, 4096 + 300)
#: Of a parameter and its gradient.
KINDS = [(np.dtype(p), np.dtype(g)) for p, g in [("f4", "f4"), ("f4", BFLOAT16), ("f2", "f2"), (BFLOAT16, BFLOAT16)]]

every_way = pytest.mark.parametrize("states", ["bfloat16", "8bit"])


def compact(rule):
    """Say whether a rule has states that may be in fewer bytes."""
    full, coded = (rv._core.state_arrays(rule, (1,), "float32", states) for states in (None, "8bit"))
    return full != coded


@every_way
@pytest.mark.parametrize("rule", [rule for rule in RULES if compact(rule)])
def test_every_rule_equals_the_cpu(gpu_device, rule, states):
    params = [numbers(n, np.float32, n) for n in LENGTHS]
    gradients = [[finite(p.shape, np.float32, 10 * step + i) for i, p in enumerate(params)] for step in range(3)]
    gradients[1][2:4] = [None, numbers(256, np.float32, 5)]  # NaN, and infinite
    gradients[1][3].view(np.uint32)[9] = 0x7FFFFFFF  # a GPU's own NaN, which a carry would make -0
    assert_same_steps(gpu_device, rule, params, gradients, HYPER[rule], states=states, l2=0.1)


@every_way
@pytest.mark.parametrize("layout", ["plain", "shifted", "transposed", "gaps"])
def test_every_dtype_and_layout_with_all_that_follows(gpu_device, layout, states):
    after = {"average": rv.EMA(0.9), "lookahead": rv.Lookahead(2, 0.3), "master": "float32"}
    shapes = [(67, 45), (1, 3), (130, 64)] if layout in ("transposed", "gaps") else [(n,) for n in LENGTHS]
    kinds = [(shape, *kind) for shape in shapes for kind in KINDS]
    params = [numbers(shape, of_params, i) for i, (shape, of_params, _) in enumerate(kinds)]
    gradients = [[gentle(shape, g, 9 * step + i) for i, (shape, _, g) in enumerate(kinds)] for step in range(3)]
    gradients[1][::5] = [None] * len(gradients[1][::5])
    xp = gpu_device.xp

    def put(x):
        if layout != "shifted":
            return strided(xp, x, layout)
        base = xp.zeros(len(x) + 3, x.dtype)
        base[3:] = xp.asarray(x)
        return base[3:]

    pipeline = {"states": states, "after": after, "weight_decay": 0.1, "clip_norm": 5.0, "clip_value": 0.9}
    assert_same_steps(gpu_device, "adam", params, gradients, HYPER["adam"], put, **pipeline)


@every_way
def test_a_pass_that_measures_reads_the_states_of_every_layout(gpu_device, states):
    params = [numbers((67, 45), dtype, i) for i, (dtype, _) in enumerate(KINDS)]
    gradients = [[gentle((67, 45), g, step) for _, g in KINDS] for step in range(2)]
    pipeline = {"states": states, "after": {"master": "float32"}, "weight_decay": 0.1}
    for layout in ("plain", "transposed"):
        put = lambda x, how=layout: strided(gpu_device.xp, x, how)  # noqa: E731
        assert_same_steps(gpu_device, "lamb", params, gradients, HYPER["lamb"], put, **pipeline)


@every_way
@pytest.mark.parametrize("rule", ["adam", "lamb"])
def test_a_step_that_is_skipped_leaves_everything_and_draws_again(gpu_device, rule, states):
    params = [finite(n, np.float32, n) for n in (301, 5003)]
    good = [[gentle(p.shape, np.float32, seed + i) for i, p in enumerate(params)] for seed in (3, 30)]
    bad = [good[0][0], good[0][1].copy()]
    bad[1][4500] = np.nan
    options = {"states": states, "nonfinite": "skip", "clip_norm": 0.5}
    made = assert_same_steps(gpu_device, rule, params, [good[0], bad, bad, good[1]], HYPER[rule], **options)
    assert made.steps == 2


@every_way
def test_the_bytes_are_of_the_steps_number_and_the_parameter(gpu_device, states):
    # Rounded another way if the number is cut off, or not.
    w, g = finite(700, np.float32), gentle(700, np.float32, 1)
    found = []
    for steps in (5, 2**32 + 5, 2**40 + 6):
        here, there = [w.copy(), w.copy()], [gpu_device.xp.asarray(w) for _ in range(2)]
        own = engine("adam", here, HYPER["adam"], states=states)
        made = device_engine(gpu_device, "adam", there, HYPER["adam"], states=states)
        for opt in (own, made):
            opt.set_counters(steps, [7, 7])
        own.step([g, g])
        made.step([gpu_device.xp.asarray(g)] * 2)
        for a, b in zip(made.states, own.states, strict=True):
            found.append(b[0])
            for ours, theirs in zip(a, b, strict=True):
                assert_same_bits(*map(as_numbers, (ours.get(), theirs)), steps)
    assert (found[0] == found[2]).all()
    assert all((found[0] != other).any() for other in (found[1], found[4]))


def test_rules_without_such_states_have_the_same_kernels():
    kinds = frozenset([(1, 1)])
    assert step_source("sgd", kinds, (), "8bit") == step_source("sgd", kinds)


# The optimizer around it.


def problem(xp):
    """A tree of parameters, and gradients for some steps."""
    shapes = {"w": ((40, 30), np.float32), "b": ((700,), np.float16)}

    def tree(seed):
        return {name: xp.asarray(gentle(shape, dtype, seed)) for name, (shape, dtype) in shapes.items()}

    return tree(0), [tree(step) for step in range(1, 6)]


def made(w, states):
    return rv.AdamW(w, lr=0.02, states=states, average=rv.EMA(0.5), master="float32", clip_norm=1.0)


def assert_same_state(a, b):
    a, b = (rv.trees.leaves(rv.to_host(opt.state_dict()["states"])) for opt in (a, b))
    assert a.keys() == b.keys()
    for name, array in b.items():
        assert_same_bits(*map(as_numbers, (np.asarray(a[name]), np.asarray(array))), name)


@every_way
def test_a_run_goes_on_from_a_state_and_a_file_of_either_device(gpu, tmp_path, states):
    (here, gradients), (there, on_device) = problem(np), problem(gpu)
    own, first, history = made(here, states), made(there, states), rv.History()
    for g, of_device in zip(gradients[:2], on_device[:2], strict=True):
        own.step(g)
        history.record(first.step(of_device))
    first.save(tmp_path / "there.safetensors")
    own.save(tmp_path / "here.safetensors")
    assert_same_state(first, own)
    for name, array in own.averages().items():
        assert_same_bits(first.averages()[name].get(), array, name)
    again, back = (rv.trees.map(lambda x: x.copy(), there), rv.to_host(there))
    second, third = made(again, states), made(back, states)
    second.load(tmp_path / "here.safetensors")
    third.load_state_dict(first.state_dict())
    for g, of_device in zip(gradients[2:], on_device[2:], strict=True):
        own.accumulate(g)
        own.step()
        third.step(g)
        second.accumulate(of_device)
        history.record(second.step())
    assert history["grad_norm"].steps.tolist() == [1, 2, 3, 4, 5]
    for name, array in here.items():
        assert_same_bits(again[name].get(), array, name)
        assert_same_bits(back[name], array, name)
    assert_same_state(second, own)
    assert_same_state(third, own)


@every_way
def test_a_replayed_step_draws_new_bytes(gpu_device, states):
    if not hasattr(gpu_device, "is_capturing"):
        pytest.skip("on a GPU: test_cuda_graph.py")
    w, g = finite(300, np.float32), gentle(300, np.float32, 1)
    there, gradient = gpu_device.xp.asarray(w), gpu_device.xp.asarray(g)
    own, opt = rv.Adam(w, lr=0.1, states=states), rv.Adam(there, lr=0.1, states=states)
    recorded = []
    launch = gpu_device.launch
    opt.step(gradient)
    gpu_device.is_capturing = True
    gpu_device.launch = lambda kernel, blocks, threads, args: recorded.append((kernel, blocks, threads, args.copy()))
    opt.step(gradient)
    gpu_device.is_capturing, gpu_device.launch = False, launch
    for arguments in recorded * 4:
        launch(*arguments)
    for _ in range(5):
        own.step(g)
    assert_same_bits(there.get(), w)
    assert_same_state(opt, own)
