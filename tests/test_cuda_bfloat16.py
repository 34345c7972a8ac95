"""bfloat16 parameters that lose nothing, or nothing on average, on a device: byte for byte the CPU's."""

import ml_dtypes
import numpy as np
import pytest

import ravine as rv
from tests.conftest import RULES, assert_same_bits, engine
from tests.test_bits import HYPER, finite, numbers
from tests.test_cuda_states import assert_same_state
from tests.test_cuda_step import assert_same_steps, device_engine, gentle, strided

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
#: Around a thread's neighbours, the elements that share a scale, and a block of threads.
LENGTHS = (1, 7, 8, 31, 255, 256, 257, 4096 + 300)
FOLLOWED = {"average": rv.EMA(0.9), "lookahead": rv.Lookahead(2, 0.3)}

#: A rule for each number of states, with and without norms of its own: what follows does not know which it is.
SHAPES = {(len(about["states"]), bool(about["norms"])): rule for rule, about in RULES.items()}


def steps(params, make=finite, count=3):
    gradients = [[make(p.shape, BFLOAT16, 10 * step + i) for i, p in enumerate(params)] for step in range(count)]
    gradients[1][2:4] = [None, numbers(params[3].shape, BFLOAT16, 5)]  # NaN, and infinite
    return gradients


@pytest.mark.parametrize("rule", SHAPES.values())
def test_split_parameters_equal_the_cpus(gpu_device, rule):
    params = [numbers(n, BFLOAT16, n) for n in LENGTHS]
    pipeline = {"after": {"master": "split"}, "l2": 0.1}
    assert_same_steps(gpu_device, rule, params, steps(params), HYPER[rule], **pipeline)


def shifted(xp, x):
    base = xp.zeros(len(x) + 3, x.dtype)
    base[3:] = xp.asarray(x)
    return base[3:]


@pytest.mark.parametrize("states", [None, "8bit"])
@pytest.mark.parametrize("rule", ["adam", "lamb"])
@pytest.mark.parametrize("layout", ["shifted", "transposed", "gaps"])
def test_split_parameters_of_every_layout_with_all_that_follows(gpu_device, layout, rule, states):
    shapes = [(n,) for n in LENGTHS] if layout == "shifted" else [(67, 45), (1, 3), (130, 64), (5, 9)]
    params = [numbers(shape, BFLOAT16, i) for i, shape in enumerate(shapes)]
    pipeline = {"states": states, "after": {**FOLLOWED, "master": "split"}, "weight_decay": 0.1, "clip_value": 0.9}
    put = lambda x: shifted(gpu_device.xp, x) if layout == "shifted" else strided(gpu_device.xp, x, layout)  # noqa: E731
    assert_same_steps(gpu_device, rule, params, steps(params, gentle), HYPER[rule], put, **pipeline)


@pytest.mark.parametrize("rule", ["adam", "lamb"])
def test_a_split_parameter_changed_from_outside_and_a_processors_own_nan(gpu_device, rule):
    here, there = [gentle(300, BFLOAT16)], [gpu_device.xp.asarray(gentle(300, BFLOAT16))]
    own = engine(rule, here, HYPER[rule], after={"master": "split"})
    made = device_engine(gpu_device, rule, there, HYPER[rule], after={"master": "split"})
    for step, value in enumerate((1, 0, -0.0, np.inf, -np.inf)):
        g = gentle(300, BFLOAT16, step)
        for opt, xp, w in ((own, np, here[0]), (made, gpu_device.xp, there[0])):
            w[:100] = value
            if step == 4:
                opt.states[0][0][200:] = xp.asarray(np.array(0x7FFFFFFF, np.uint32).view(np.float32))
            opt.step([xp.asarray(g)])
        assert_same_bits(there[0].get(), here[0], step)
        assert_same_bits(made.kept[0]["remainder"].get(), own.kept[0]["remainder"], step)
    assert np.isnan(here[0][200:].astype(np.float32)).all()
    assert not own.kept[0]["remainder"][200:].any()


@pytest.mark.parametrize("rule", SHAPES.values())
def test_parameters_rounded_at_random_equal_the_cpus(gpu_device, rule):
    params = [numbers(n, BFLOAT16, n) for n in LENGTHS]
    pipeline = {"rounding": "stochastic", "l2": 0.1}
    assert_same_steps(gpu_device, rule, params, steps(params), HYPER[rule], **pipeline)


@pytest.mark.parametrize("states", [None, "8bit"])
@pytest.mark.parametrize("rule", ["adam", "lamb"])
@pytest.mark.parametrize("layout", ["shifted", "transposed", "gaps"])
def test_chance_in_every_layout_with_all_that_follows(gpu_device, layout, rule, states):
    shapes = [(n,) for n in LENGTHS] if layout == "shifted" else [(67, 45), (1, 3), (130, 64), (5, 9)]
    params = [numbers(shape, BFLOAT16, i) for i, shape in enumerate(shapes)]
    pipeline = {"states": states, "after": FOLLOWED, "rounding": "stochastic", "weight_decay": 0.1, "clip_norm": 0.9}
    put = lambda x: shifted(gpu_device.xp, x) if layout == "shifted" else strided(gpu_device.xp, x, layout)  # noqa: E731
    assert_same_steps(gpu_device, rule, params, steps(params, gentle), HYPER[rule], put, **pipeline)


# The optimizer around it.


def tree(xp, seed=0):
    shapes = {"w": (40, 30), "b": (700,), "scalar": ()}
    made = {name: np.array(gentle(shape, BFLOAT16, seed + i)) for i, (name, shape) in enumerate(shapes.items())}
    return rv.trees.map(xp.asarray, made)


@pytest.mark.parametrize(
    "options",
    [{"master": "split"}, {"master": "split", "states": "8bit", **FOLLOWED}, {"rounding": "stochastic"}],
    ids=["split", "split and all", "stochastic"],
)
def test_a_run_goes_on_from_a_file_of_either_device(gpu, tmp_path, options):
    here, there = tree(np), tree(gpu)
    own, first = (rv.AdamW(w, lr=0.02, nonfinite="skip", **options) for w in (here, there))
    for seed in range(10, 13):
        own.step(tree(np, seed))
        first.step(tree(gpu, seed))
    first.save(tmp_path / "there.safetensors")
    again, back = tree(gpu, 50), tree(np, 60)
    second, third = (rv.AdamW(w, lr=0.02, nonfinite="skip", **options) for w in (again, back))
    own.save(tmp_path / "here.safetensors")
    second.load(tmp_path / "here.safetensors")
    third.load(tmp_path / "there.safetensors")
    bad = tree(np, 13)
    bad["b"][3] = np.nan
    for opt, xp in ((own, np), (second, gpu), (third, np)):
        opt.step(rv.trees.map(xp.asarray, bad))
        opt.accumulate(tree(xp, 14))
        opt.accumulate(tree(xp, 15), weight=3)
        opt.step()
    assert own.steps == second.steps == 4
    for name, array in here.items():
        assert_same_bits(again[name].get(), array, name)
        assert_same_bits(back[name], array, name)
    assert_same_state(second, own)
    assert_same_state(third, own)


def test_exact_copies_become_remainders_there_too(gpu):
    copied = rv.AdamW(tree(gpu), lr=0.02, master="float32")
    split = rv.AdamW(tree(gpu, 5), lr=0.02, master="split")
    for seed in range(10, 13):
        copied.step(tree(gpu, seed))
    split.load_state_dict(copied.state_dict())
    back = rv.AdamW(rv.trees.map(lambda x: x.copy(), split._params), lr=0.02, master="float32")
    back.load_state_dict(split.state_dict())
    assert_same_state(back, copied)
