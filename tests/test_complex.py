"""Complex parameters: every step and norm is that of their real and imaginary parts, on a last axis of 2.

What is expected comes from arrays of the parts, which `parts` makes without the package, or from complex formulas.
"""

import copy
import inspect
import itertools
import pickle
import re

import numpy as np
import pytest

import ravine as rv
from tests.conftest import RULES, as_arguments, assert_same_bits, engine, zero_states
from tests.test_bits import HYPER, finite
from tests.test_cuda_step import device_engine
from tests.test_rules import CASES, PIPELINES, label
from tests.test_state import OPTIMIZERS

C64, C128, F32 = np.complex64, np.complex128, np.float32
DTYPES = {"complex64": (C64, F32), "complex128": (C128, np.float64)}
SHAPES = [(), (1,), (7, 5), (0, 3), (4097,), (3, 2)]

every_rule = pytest.mark.parametrize("rule", RULES)
every_dtype = pytest.mark.parametrize("dtype, real", DTYPES.values(), ids=DTYPES)
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def parts(z):
    """The real and the imaginary parts, as an array of their own; of real numbers a copy."""
    z = np.asarray(rv.to_host(z))
    return np.stack([z.real, z.imag], axis=-1) if z.dtype.kind == "c" else z.copy()


def numbers(shape, dtype, seed=0):
    """Complex numbers of many magnitudes: subnormal parts and zeros of either sign among them."""
    z = np.empty(shape, dtype)
    z.real, z.imag = (finite(shape, z.real.dtype, seed + k).clip(-900, 900) for k in (0, 3))
    return z


def strided(z):
    """The same numbers, in memory as it may come."""
    transposed = np.asfortranarray(z)
    spread = np.full([2 * n + 1 for n in z.shape], 9, z.dtype)
    spread = spread[tuple(slice(1, None, 2) for _ in z.shape)][tuple(slice(None, None, -1) for _ in z.shape)]
    record = np.zeros(z.shape, [("z", z.dtype), ("x", z.real.dtype)])["z"]  # 12 or 24 bytes apart
    for array in (spread, record):
        array[...] = z
    return {"transposed": transposed, "spread and reversed": spread, "field": record}


def tree(seed=0, xp=np, real=False):
    """Parameters or gradients: complex and real ones, nested, 0-d, empty, strided."""
    of = [
        *(numbers(shape, C64, seed + i) for i, shape in enumerate([(3, 4), (), (0, 2)])),
        numbers((6,), C128, seed + 5),
        finite((3, 2), F32, seed + 6),
    ]
    w, scalar, empty, wide, plain = [xp.asarray(parts(z) if real else z) for z in of]
    every_second = xp.asarray(parts(numbers((8,), C64, seed + 7)) if real else numbers((8,), C64, seed + 7))[::2]
    return {"w": w, "rest": [scalar, empty, {"wide": wide, "plain": plain}], "b": (every_second,)}


def gradients(seed, xp=np, real=False):
    grads = tree(100 + seed, xp, real)
    if seed % 3 == 2:
        grads["rest"][2]["wide"] = None
    return grads


def leaves(params):
    return [parts(leaf) for leaf in rv.trees.leaves(params).values()]


def assert_same_run(got, expected):
    """Parameters and states of an optimizer on complex numbers, and of one on their parts."""
    for a, b in zip(leaves(got.params), leaves(expected.params), strict=True):
        assert_same_bits(a, b)
    mine, other = got.state_dict(), expected.state_dict()
    assert mine.pop("complex") == ["w", "rest.0", "rest.1", "rest.2.wide", "b.0"]
    for name, states in other.pop("states").items():
        own = mine["states"][name]
        assert own.keys() == states.keys()
        for kind, array in states.items():
            assert_same_bits(rv.to_host(own[kind]), rv.to_host(array), f"{name}: {kind}")
    del mine["states"]
    assert mine == other


@every_dtype
@pytest.mark.parametrize("pipeline", ["all", "after"])
@pytest.mark.parametrize("case", CASES, ids=label)
def test_every_rule_steps_pairs_of_reals(case, pipeline, dtype, real):
    rule, hyper = case
    params = [numbers(shape, dtype, i) for i, shape in enumerate(SHAPES)]
    own, made = [parts(z) for z in params], engine(rule, params, hyper, **PIPELINES[pipeline])
    expected = engine(rule, own, hyper, **PIPELINES[pipeline])
    for t in range(3):
        grads = [numbers(shape, dtype, 10 + i + t) for i, shape in enumerate(SHAPES)]
        grads[t] = None
        info = made.step(grads)
        assert repr(info) == repr(expected.step([g if g is None else parts(g) for g in grads]))
    for z, w in zip(params, own, strict=True):
        assert_same_bits(parts(z), w, rule)
    for of_each, theirs in zip(made.states, expected.states, strict=True):
        for state, other in zip(of_each, theirs, strict=True):
            assert_same_bits(state, other, rule)
    for of_each, theirs in zip(made.kept, expected.kept, strict=True):
        for name, other in theirs.items():
            assert_same_bits(of_each[name], other, f"{rule}: {name}")


@every_dtype
@every_rule
def test_every_rule_takes_any_strides(rule, dtype, real):
    z, of_steps = numbers((5, 7), dtype), [numbers((5, 7), dtype, seed) for seed in (1, 2)]
    expected = z.copy()
    made = engine(rule, [expected], HYPER[rule], **PIPELINES["all"])
    for g in of_steps:
        made.step([g])
    for layout, w in strided(z).items():
        assert_same_bits(parts(w), parts(z))
        other = engine(rule, [w], HYPER[rule], **PIPELINES["all"])
        for g, of_gradient in zip(of_steps, ("field", "transposed"), strict=True):
            other.step([strided(g)[of_gradient]])
        assert_same_bits(parts(w), parts(expected), f"{rule}: {layout}")
        for state, theirs in zip(other.states[0], made.states[0], strict=True):
            assert_same_bits(state, theirs, f"{rule}: {layout}")


@every_rule
def test_every_rule_equals_the_cpu_on_a_device(gpu_device, rule):
    xp, shapes = gpu_device.xp, [*SHAPES, (9, 2)]
    here = [numbers(shape, C128 if i % 2 else C64, i) for i, shape in enumerate(shapes)]
    there = [xp.asarray(z) for z in here[:-1]]
    there.append(xp.asarray(np.stack([here[-1]] * 2, axis=1))[:, 1])  # strided
    own = engine(rule, here, HYPER[rule], nonfinite="skip", **PIPELINES["all"])
    made = device_engine(gpu_device, rule, there, HYPER[rule], nonfinite="skip", **PIPELINES["all"])
    for t in range(3):
        grads = [numbers(z.shape, z.dtype, 10 + i + t) for i, z in enumerate(here)]
        if t == 1:
            grads[4][31] = complex(1, np.inf)
        expected = own.step(grads)
        assert expected.skipped == (t == 1)
        assert repr(made.step([xp.asarray(g) for g in grads])) == repr(expected)
    for a, b in zip(there, here, strict=True):
        assert_same_bits(parts(a), parts(b), rule)
    for a, b in zip(itertools.chain(*made.states), itertools.chain(*own.states), strict=True):
        assert_same_bits(a.get(), b, rule)


OPTIONS = {
    "plain": {},
    "clipped and checked": {"clip_norm": 2.5, "clip_value": 0.9, "nonfinite": "skip", "l2": 0.07, "weight_decay": 0.13},
    "in groups": {"groups": [("rest.*", {"lr": 0.02}), ("w", {"lr": rv.schedules.exponential(0.05, 0.9)})]},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@every_optimizer
def test_every_optimizer_does_what_it_does_to_the_parts(make, options):
    opt, expected = make(tree(), **options), make(tree(real=True), **options)
    for seed in range(4):
        assert repr(opt.step(gradients(seed))) == repr(expected.step(gradients(seed, real=True)))
    for micro_batch in (5, 6):
        opt.accumulate(gradients(micro_batch), weight=3)
        expected.accumulate(gradients(micro_batch, real=True), weight=3)
    assert repr(opt.step(grad_scale=2.0**10)) == repr(expected.step(grad_scale=2.0**10))
    assert_same_run(opt, expected)
    assert opt.formula() == expected.formula()


@every_optimizer
def test_copies_states_and_files_go_on_bit_for_bit(make, tmp_path):
    goes_on(make, tmp_path, [np])


@pytest.mark.parametrize("rule", ["adam", "momentum"])
def test_states_and_files_go_on_on_a_device(rule, tmp_path, gpu):
    goes_on(OPTIMIZERS[rule], tmp_path, [gpu])


def goes_on(make, tmp_path, backends):
    """Go on with copies, and with what a state and a file restore, on each backend."""
    opt, expected = make(tree()), make(tree(real=True))
    for seed in range(3):
        opt.step(gradients(seed))
        expected.step(gradients(seed, real=True))
    opt.accumulate(gradients(9))
    twins = [copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))]
    opt.discard_accumulated()
    opt.save(tmp_path / "run.safetensors")
    for xp in backends:
        resumed = make(tree(1, xp))
        resumed.load(tmp_path / "run.safetensors")
        twins.append(resumed)
        params = rv.trees.map(lambda leaf: leaf.copy(), rv.to_host(opt.params))
        restored = make(rv.to_device(params, "cpu" if xp is np else "cuda"))
        restored.load_state_dict({**(state := opt.state_dict()), "states": rv.to_host(state["states"])})
        twins.append(restored)
    for twin in twins[2:]:
        twin.accumulate(gradients(9, np if twin._backend is opt._backend else backends[0]))
    expected.accumulate(gradients(9, real=True))
    expected.step()
    expected.step(gradients(4, real=True))
    for twin in twins:
        twin.step()
        twin.step(gradients(4, np if twin._backend is opt._backend else backends[0]))
        assert_same_run(twin, expected)


def test_files_hold_the_parts_and_name_the_complex_parameters(tmp_path):
    import safetensors.numpy

    opt = rv.Adam(tree(), lr=0.1)
    opt.step(gradients(0))
    opt.save(tmp_path / "run.safetensors")
    held = safetensors.numpy.load_file(tmp_path / "run.safetensors")
    assert_same_bits(held["params/w"], parts(opt.params["w"]))
    assert held["adam/m/w"].shape == (3, 4, 2)
    with safetensors.safe_open(tmp_path / "run.safetensors", "numpy") as file:
        header = file.metadata()["ravine"]
    assert '"complex":["w","rest.0","rest.1","rest.2.wide","b.0"]' in header


@pytest.mark.parametrize("rule", [rv.SGD, rv.Adam])
@pytest.mark.parametrize("options", [{}, {"params": False}], ids=["params", "states alone"])
def test_complex_numbers_and_pairs_of_reals_are_two_things_in_files_and_states(tmp_path, rule, options):
    z, w = {"w": numbers((3,), C64)}, {"w": finite((3, 2), F32)}
    of_complex, of_real = rule(z, lr=0.1), rule(w, lr=0.1)
    for own, other, expected, got in (
        (of_complex, of_real, "complex", "real"),
        (of_real, of_complex, "real", "complex"),
    ):
        before = own.params["w"].tobytes()
        other.save(tmp_path / "other.safetensors", **options)
        with pytest.raises(ValueError, match=f"'w': expected {expected} numbers, got {got} ones.*Nothing was loaded"):
            own.load(tmp_path / "other.safetensors", **options)
        with pytest.raises(ValueError, match=r"complex: expected .*'w'.*Nothing was loaded"):
            own.load_state_dict(other.state_dict())
        assert own.params["w"].tobytes() == before
    for wrong in (3, "w", ["v"], ["w", "v"]):
        with pytest.raises(ValueError, match=r"complex: expected .*Nothing was loaded"):
            of_complex.load_state_dict({**of_complex.state_dict(), "complex": wrong})


# Formulas in complex numbers.


def test_descent_and_momentum_are_the_complex_formulas():
    w, b = np.array([1 + 2j, -3j]), np.zeros(2, C128)
    z = w.copy()
    opt = rv.SGD(z, lr=0.25, momentum=0.5)
    for g in (np.array([2 - 1j, 4j]), np.array([1j, 1 + 1j])):
        b = 0.5 * b + g
        w = w - 0.25 * b
        opt.step(g)
    assert_same_bits(parts(z), parts(w))


def test_descent_along_the_gradient_of_both_parts_finds_the_minimum():
    """Of f = Σ|az − b|², of which ∂f/∂Re z + i ∂f/∂Im z = 2 ā(az − b)."""
    a, b = np.array([1 + 1j, 2 - 0.5j]), np.array([3 - 1j, 0.5j])
    z = np.zeros(2, C128)
    opt = rv.SGD(z, lr=0.1)
    for _ in range(300):
        opt.step(2 * a.conj() * (a * z - b))
    np.testing.assert_allclose(z, b / a, atol=1e-12)


def test_adam_moves_each_part_by_the_rate():
    """Both parts have a second moment of their own, as in torch: m̂/√v̂ is the sign of each in the first step."""
    z = np.zeros(3, C64)
    rv.Adam(z, lr=0.5, eps=0.0).step(np.array([3 - 4j, -1e-3 + 20j, 5], C64))
    np.testing.assert_allclose(z, [-0.5 + 0.5j, 0.5 - 0.5j, -0.5], rtol=1e-6)


def test_the_norms_of_layerwise_rules_are_those_of_complex_arrays():
    w, g = numbers((3, 4), C128).clip(-2, 2), numbers((3, 4), C128, 1).clip(-2, 2)
    z = w.copy()
    rv.LARS(z, lr=0.1, trust_coefficient=0.5).step(g)
    trust = 0.5 * np.linalg.norm(w) / np.linalg.norm(g)
    np.testing.assert_allclose(z, w - 0.1 * trust * g, rtol=1e-7)


@pytest.mark.parametrize("on_device", [False, True], ids=["cpu", "device"])
def test_norms_and_clipping(gpu, on_device):
    xp = gpu if on_device else np
    z = {"a": numbers((5, 3), C64), "b": [numbers((4097,), C128, 1), finite((7,), F32)], "c": numbers((), C64, 2)}
    layouts = [z, {**z, "a": np.asfortranarray(z["a"])}, {**z, "a": strided(z["a"])["spread and reversed"]}]
    reals = rv.trees.map(parts, z)
    norm, norms = rv.global_norm(reals), rv.tensor_norms(reals)
    for layout in layouts:
        there = rv.trees.map(lambda leaf: xp.asarray(leaf) if on_device else leaf.copy(), layout)
        if not on_device:
            there["a"] = layout["a"]
        assert float(rv.global_norm(there)) == norm
        assert {name: float(n) for name, n in rv.tensor_norms(there).items()} == norms
    clipped = rv.trees.map(np.copy, reals)
    assert float(rv.clip_by_global_norm_(there, norm / 3)) == rv.clip_by_global_norm_(clipped, norm / 3)
    for got, expected in zip(leaves(there), leaves(clipped), strict=True):
        assert_same_bits(got, expected)


def test_the_global_norm_is_that_of_the_complex_numbers():
    assert rv.global_norm(np.array([3 + 4j, 12j])) == 13.0
    assert rv.tensor_norms({"a": np.array(3 + 4j, C64), "b": np.ones(4)}) == {"a": 5.0, "b": 2.0}


@pytest.mark.parametrize("axis", [-1, 0, 1, -2])
@pytest.mark.parametrize("on_device", [False, True], ids=["cpu", "device"])
def test_units_are_clipped_along_the_axes_of_the_complex_array(gpu, on_device, axis):
    xp = gpu if on_device else np
    w, g = numbers((3, 4), C128).clip(-2, 2), numbers((3, 4), C128, 1).clip(-2, 2)
    b, of_b = numbers((3,), C64).clip(-2, 2), numbers((3,), C64, 1).clip(-2, 2)  # one unit

    def clipped(w, g, over):
        size, least = (np.sqrt((abs(x) ** 2).sum(over, keepdims=True)) for x in (g, w))
        most = 0.25 * np.maximum(least, 0.5)
        return np.where(size > most, g * most / np.where(size > 0, size, 1), g)

    expected = clipped(w, g, (axis + 1) % 2), clipped(b, of_b, 0)
    there = [xp.asarray(x.copy()) for x in (w, b, g, of_b)]
    rv.adaptive_clip_(there[:2], there[2:], 0.25, 0.5, axis=axis)
    np.testing.assert_allclose(rv.to_host(there[2]), expected[0], rtol=1e-14)
    np.testing.assert_allclose(rv.to_host(there[3]), expected[1], rtol=1e-6)


# What surrounds a step.


@pytest.mark.parametrize("states", [None, "bfloat16", "8bit"])
def test_options_of_states_averages_and_lookahead(states):
    options = {"states": states, "average": rv.EMA(0.4), "lookahead": rv.Lookahead(2, 0.3), "master": "float32"}
    made = []
    for real in (False, True):
        params = {"w": (parts if real else np.copy)(numbers((40, 9), C64)), "s": np.array(0, F32)}
        opt = rv.AdamW(params, lr=0.1, **options)
        for seed in range(5):
            g = numbers((40, 9), C64, seed)
            opt.step({"w": parts(g) if real else g, "s": np.array(seed, F32)})
        made.append(opt)
    opt, expected = made
    assert_same_bits(parts(opt.params["w"]), expected.params["w"])
    averages = opt.averages()
    assert (averages["w"].dtype, averages["w"].shape) == (C64, (40, 9))
    assert_same_bits(parts(averages["w"]), expected.averages()["w"])
    own = opt.params["w"].copy()
    with opt.averaged_parameters():
        assert_same_bits(parts(opt.params["w"]), parts(averages["w"]))
    assert_same_bits(parts(opt.params["w"]), parts(own))
    for kind, array in expected.state_dict()["states"]["w"].items():
        assert_same_bits(opt.state_dict()["states"]["w"][kind], array, kind)


@pytest.mark.parametrize("make", [rv.ASGD, rv.ScheduleFreeSGD, rv.ScheduleFreeAdamW, rv.MADGRAD])
@pytest.mark.parametrize("shape", [(), (3,), (0, 2)])
def test_averages_of_rules_that_keep_one_are_complex(gpu, make, shape):
    for xp in (np, gpu):
        z = xp.asarray(numbers(shape, C64))
        opt, expected = make({"z": z}, lr=0.1), make({"z": parts(z)}, lr=0.1)
        for seed in range(3):
            opt.step({"z": xp.asarray(numbers(shape, C64, seed))})
            expected.step({"z": parts(numbers(shape, C64, seed))})
        if make is not rv.MADGRAD:
            got = opt.averages()["z"]
            assert (got.dtype, got.shape) == (C64, shape)
            assert_same_bits(parts(got), expected.averages()["z"])


@pytest.mark.parametrize("on_device", [False, True], ids=["cpu", "device"])
@pytest.mark.parametrize("make", [rv.SGD, rv.Adagrad, rv.Adam])
def test_sparse_rows_of_complex_tables(gpu, on_device, make):
    xp = gpu if on_device else np
    indices, rows = np.array([4, 1, 4]), numbers((3, 3), C64, 1)
    runs = []
    for real in (False, True):
        of = parts if real else np.copy
        table, w = xp.asarray(of(numbers((6, 3), C64))), xp.asarray(of(numbers((2,), C64, 3)))
        opt = make({"table": table, "w": w}, lr=0.1, nonfinite="skip")
        for seed in (1, 2):
            g = {"table": rv.RowSparse(xp.asarray(indices), xp.asarray(of(rows)))}
            info = opt.step({**g, "w": xp.asarray(of(numbers((2,), C64, seed)))})
            assert not info.skipped
        runs.append((opt, table, w))
    (opt, table, w), (_, *expected) = runs
    for got, real in zip((table, w), expected, strict=True):
        assert_same_bits(parts(got), rv.to_host(real))
    rows[1, 2] = complex(0, np.nan)
    g = xp.asarray(numbers((2,), C64))
    info = opt.step({"table": rv.RowSparse(xp.asarray(indices), xp.asarray(rows)), "w": g})
    assert info.nonfinite == {"table": (1, 1 * 3 + 2)}
    for wrong in (rows.real.copy(), parts(rows), rows.astype(C128)):
        with pytest.raises((TypeError, ValueError), match=r"grads\['table'\]: expected values of "):
            opt.step({"table": rv.RowSparse(xp.asarray(indices), xp.asarray(wrong)), "w": g})


def test_what_is_not_finite_is_told_by_the_complex_element(gpu):
    for xp in (np, gpu):
        opt = rv.Adam({"z": xp.asarray(numbers((3, 4), C64)), "w": xp.ones(2, F32)}, nonfinite="skip")
        g = numbers((3, 4), C64)
        g[1, 2], g[2, 1] = complex(0, np.inf), complex(np.nan, np.nan)
        info = opt.step({"z": xp.asarray(g), "w": xp.asarray(np.array([1, np.nan], F32))})
        assert info.skipped
        assert info.nonfinite == {"z": (3, 6), "w": (1, 1)}  # parts, and the first's element


def test_history_records_the_norms_of_complex_parameters():
    opt, history = rv.SGD({"z": np.array([3 + 4j, 0]), "s": np.array(2j)}, lr=0.5), rv.History()
    history.step(opt, {"z": np.array([0, 6 - 8j]), "s": 4j})
    assert {name: float(history[name].values[0]) for name in history.names} == {
        "lr": 0.5,
        "grad_norm/z": 10.0,
        "grad_norm/s": 4.0,
        "param_norm/z": np.sqrt(50),
        "param_norm/s": 0.0,
        "update_norm/z": 5.0,
        "update_norm/s": 2.0,
    }


def test_lr_range_test_leaves_complex_parameters_as_they_were():
    z = np.array([3 + 4j, 1 - 1j])
    before = z.copy()
    found = rv.lr_range_test(lambda z: (float((abs(z) ** 2).sum()), 2 * z), z, rv.SGD(z, lr=0.1), steps=20)
    assert found.suggested is not None
    assert_same_bits(parts(z), parts(before))


def test_loss_scales(gpu):
    for xp in (np, gpu):
        z, scale = xp.asarray(np.array([1 + 1j], C64)), rv.DynamicLossScale(2.0**4)
        opt = rv.SGD({"z": z}, lr=0.5)
        opt.step({"z": xp.asarray(np.array([complex(np.inf, 0)], C64))}, grad_scale=scale)
        assert rv.to_host(z)[0] == 1 + 1j
        opt.step({"z": xp.asarray(np.array([16j], C64))}, grad_scale=scale)
        assert rv.to_host(z)[0] == 1 - 0j


@pytest.mark.parametrize("kind", [np.complex128, complex, float, int])
def test_numbers_are_gradients_of_complex_parameters_without_axes(kind):
    z = np.array(1 + 2j)
    opt = rv.SGD({"z": z}, lr=0.5)
    opt.step({"z": kind(2)})
    assert z == 2j
    opt.accumulate({"z": np.complex128(2j)})
    opt.step()
    assert z == 1j


def test_arrays_that_share_their_memory_in_other_ways():
    z = numbers((4,), C128)
    expected, given = z.copy(), z.copy()
    opt, own = rv.AdamW({"z": memoryview(given)}, lr=0.1), rv.AdamW({"z": expected}, lr=0.1)
    for seed in (1, 2):
        opt.step({"z": memoryview(numbers((4,), C128, seed))})
        own.step({"z": numbers((4,), C128, seed)})
    assert_same_bits(parts(given), parts(expected))


class Lent:
    """What another library lends by DLPack."""

    def __init__(self, array):
        self.array = array
        self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__


def test_gradients_of_other_libraries():
    z = numbers((3, 4), C64)
    expected = z.copy()
    opt, own = rv.AdamW({"z": z}, lr=0.1), rv.AdamW({"z": expected}, lr=0.1)
    for seed in (1, 2):
        opt.step({"z": Lent(numbers((4, 3), C64, seed).T)})
        own.step({"z": numbers((4, 3), C64, seed).T})
    assert_same_bits(parts(z), parts(expected))
    assert rv.global_norm(Lent(z)) == rv.global_norm(z)


@every_dtype
@every_rule
def test_functions_take_complex_states_and_pairs_of_reals(rule, dtype, real):
    function, keywords = getattr(rv.functional, rule + "_"), as_arguments(HYPER[rule])
    if "step" in inspect.signature(function).parameters:
        keywords["step"] = 3
    z, g = numbers((5, 3), dtype), numbers((5, 3), dtype, 1)
    w, states = parts(z), zero_states(rule, (5, 3, 2), real)
    for i, state in enumerate(states):
        state[...] = abs(finite(state.shape, state.dtype, i)).clip(0, 4)
    variants = [(z.copy(), [state.copy() for state in states])]
    if all(state.shape == (5, 3, 2) for state in states):
        variants.append((z.copy(), [state.copy().view(dtype)[..., 0] for state in states]))
        variants.append((strided(z)["field"], [np.asfortranarray(s.copy().view(dtype)[..., 0]) for s in states]))
    function(w, parts(g), *states, **keywords)
    for own, of_own in variants:
        function(own, g, *of_own, **keywords)
        assert_same_bits(parts(own), w, rule)
        for state, other in zip(of_own, states, strict=True):
            assert_same_bits(parts(state), other, rule)


def test_functions_on_a_device(gpu):
    z, m, v = numbers((5, 3), C64), numbers((5, 3), C64, 1), numbers((5, 3), C64, 2)
    v.real, v.imag = abs(v.real), abs(v.imag)
    there = [gpu.asarray(x) for x in (z, m, v)]
    rv.functional.adamw_(z, z.T.copy().T + 1, m, v, step=3, lr=0.1)
    rv.functional.adamw_(there[0], there[0] + 1, *there[1:], step=3, lr=0.1)
    for a, b in zip(there, (z, m, v), strict=True):
        assert_same_bits(parts(a), parts(b))


# What is refused, by name, and with nothing changed.


Z = numbers((3, 2), C64)
WRONG_GRADIENTS = {
    "real": (Z.real.copy(), TypeError, "expected complex64 like its parameter, got float32; convert it with g.astype"),
    "pairs": (parts(Z), TypeError, "expected complex64 like its parameter, got float32; pass g[..., 0] + 1j * g["),
    "wider": (Z.astype(C128), TypeError, "expected complex64 like its parameter, got complex128; convert it with g."),
    "transposed": (Z.T.copy(), ValueError, "expected shape (3, 2) like its parameter, got (2, 3); transpose it"),
    "flat": (Z.reshape(-1), ValueError, "expected shape (3, 2) like its parameter, got (6,); reshape it"),
    "fewer": (Z[:2].copy(), ValueError, "expected shape (3, 2) like its parameter, got (2, 2)"),
    "big-endian": (Z.astype(">c8"), TypeError, "expected native byte order, got >c8; convert it"),
    "masked": (np.ma.array(Z), TypeError, "a masked array's mask would be ignored"),
    "a number": (1j, TypeError, "expected a NumPy array, got complex; pass np.asarray"),
}


@pytest.mark.parametrize("gradient, error, text", WRONG_GRADIENTS.values(), ids=WRONG_GRADIENTS)
def test_wrong_gradients(gradient, error, text):
    params = {"v": Z.copy(), "z": Z.copy()}
    opt = rv.Adam(params)
    for run in (opt.step, opt.accumulate):
        with pytest.raises(error, match=re.escape(f"grads['z']: {text}")):
            run({"v": Z.copy(), "z": gradient})
    assert_same_bits(parts(params["v"]), parts(Z))
    assert opt.steps == 0


def test_a_narrower_gradient_and_complex_gradients_of_real_parameters():
    opt = rv.Adam({"z": np.ones(3, C128)})
    with pytest.raises(TypeError, match=r"grads\['z'\]: expected complex128 like its parameter, got complex64; conv"):
        opt.step({"z": np.ones(3, C64)})
    opt = rv.Adam({"w": np.ones((3, 2), F32)})
    for g in (np.ones((3, 2), C64), np.ones(3, C64)):
        with pytest.raises(
            TypeError, match=r"grads\['w'\]: expected float32 like its parameter, got complex64; pass it"
        ):
            opt.step({"w": g})
    with pytest.raises(TypeError, match=r"grads\['w'\]: expected float32 like its parameter, got complex64; pass its"):
        rv.adaptive_clip_({"w": np.ones((3, 2), F32)}, {"w": np.ones(3, C64)})


def test_gradients_that_share_memory():
    params = {"z": Z.copy(), "w": np.ones(2, F32)}
    opt = rv.Adam(params)
    for g in (params["z"], params["z"][::-1]):
        with pytest.raises(ValueError, match=r"grads\['z'\]: shares memory with parameter 'z'"):
            opt.step({"z": g, "w": None})
    with pytest.raises(ValueError, match=r"grads\['w'\]: shares memory with parameter 'z'"):
        opt.step({"z": None, "w": params["z"].imag[:2, 0]})


WRONG_PARAMETERS = {
    "broadcast": (
        lambda: np.lib.stride_tricks.as_strided(Z, (3, 2), (0, 8)),
        ValueError,
        r"strides \[0, 8\] of shape \[3, 2\]",
    ),
    "read-only": (lambda: np.frombuffer(Z.tobytes(), C64), ValueError, "read-only"),
    "big-endian": (lambda: Z.astype(">c8"), TypeError, "native byte order"),
    "long": (lambda: Z.astype(np.clongdouble), TypeError, r"expected complex64 or complex128.*astype\(np.complex128\)"),
    "masked": (lambda: np.ma.array(Z), TypeError, "masked array"),
    "unaligned": (lambda: np.frombuffer(bytearray(17), np.uint8)[1:].view(C64), ValueError, "not aligned"),
}


@pytest.mark.parametrize("make, error, text", WRONG_PARAMETERS.values(), ids=WRONG_PARAMETERS)
def test_wrong_parameters(make, error, text):
    with pytest.raises(error, match=rf"params\['z'\]: .*{text}"):
        rv.Adam({"z": make()})


def test_parts_of_a_complex_array_are_parameters_but_not_beside_it():
    z = Z.copy()
    with pytest.raises(ValueError, match=r"params\['z'\] and params\['w'\] share memory"):
        rv.Adam({"z": z, "w": z.real})
    opt, expected = rv.Adam({"x": z.real, "y": z.imag}), rv.Adam({"z": Z.copy()})
    opt.step({"x": Z.imag, "y": Z.real})
    expected.step({"z": Z.imag + 1j * Z.real})
    assert_same_bits(parts(z), parts(expected.params["z"]))


def test_a_parameter_that_was_replaced_is_found():
    params = {"z": Z.copy()}
    opt = rv.Adam(params)
    params["z"] = params["z"].copy()
    for run in (lambda: opt.step({"z": Z.copy()}), lambda: opt.save("nowhere")):
        with pytest.raises(ValueError, match=r"params\['z'\] is another array than the one given"):
            run()
    opt = rv.Adam(params)
    params["z"].dtype = np.int64
    with pytest.raises((TypeError, ValueError), match=r"params\['z'\]: "):
        opt.step({"z": Z.copy()})


REFUSED = {
    "Muon": (lambda z: rv.Muon({"z": z}), TypeError, r"params\['z'\]: expected real numbers.*Muon has no formula"),
    "Adafactor": (lambda z: rv.Adafactor(z), TypeError, "params: expected real numbers.*Adafactor has no formula"),
    "optax": (lambda z: rv.Adam({"z": z}, lr=0.1, like="optax"), TypeError, r"params\['z'\]: complex, .* leave like"),
    "split": (
        lambda z: rv.Adam({"z": z}, master="split"),
        TypeError,
        r"params\['z'\]: master='split' .* got complex64",
    ),
    "random": (lambda z: rv.Adam({"z": z}, rounding="stochastic"), TypeError, r"params\['z'\]: .* got complex64"),
    "8bit": (lambda z: rv.Adam({"z": z + 0j}, states="8bit"), TypeError, r"params\['z'\]: .* got complex128"),
    "minimize": (
        lambda z: rv.minimize(lambda p: (0.0, p), {"z": z}),
        TypeError,
        "z: .* got complex64; pass its real view",
    ),
    "batch_norm": (lambda z: rv.batch_norm(z, z[0], z[0]), TypeError, r"x: .* got complex64; pass x.real, x.imag"),
}


@pytest.mark.parametrize("run, error, text", REFUSED.values(), ids=REFUSED)
def test_what_complex_numbers_have_no_formula_for(run, error, text):
    z = Z.astype(C128) if "complex128" in text else Z.copy()
    before = z.copy()
    with pytest.raises(error, match=text):
        run(z)
    assert_same_bits(parts(z), parts(before))


@pytest.mark.parametrize("make", [rv.SGD, lambda p, **o: rv.SGD(p, momentum=0.9, **o)], ids=["plain", "momentum"])
def test_systems_that_agree_may_be_named(make):
    for like in ("optax", "torch"):
        z = np.array([1 + 2j])
        make(z, lr=0.5, like=like).step(np.array([2 + 2j]))
        assert z == 1j
