"""The promise on bits: a step's result depends on its numbers alone, and equals the specification."""

import copy

import ml_dtypes
import numpy as np
import pytest

import ravine as rv
from tests import specification
from tests.conftest import LAYERWISE, RULES, assert_same_bits, engine, hyper_sets, instruction_sets
from tests.test_rules import CONFIGURATIONS, configuration, specified

LEVELS = instruction_sets()
HYPER = {rule: next(hyper_sets(rule)) for rule in RULES}
PIPELINE = {"weight_decay": 0.13, "l2": 0.07, "maximize": True, "clip_value": 0.9}
DTYPES = {name: np.dtype(name) for name in ("float32", "float64", "float16")} | {
    "bfloat16": np.dtype(ml_dtypes.bfloat16)
}

every_rule = pytest.mark.parametrize("rule", RULES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def numbers(shape, dtype, seed=0):
    """Normal numbers of many magnitudes, every seventh one special: subnormal, zero of either sign, huge, inf, NaN."""
    rng = np.random.default_rng(seed)
    x = np.asarray(rng.standard_normal(shape) * 10.0 ** rng.integers(-4, 4, shape))
    special = np.array([1e-40, -3e-39, 2e-310, 1e-7, 0.0, -0.0, 3e38, -7e4, np.inf, np.nan])
    places = x.reshape(-1)[seed % 7 :: 7]  # other ones for each seed, so that NaN meets numbers
    places[:] = special[np.arange(seed, seed + len(places)) % len(special)]
    with np.errstate(all="ignore"):
        return x.astype(dtype)


def stepped(rule, params, gradients, **pipeline):
    """Step copies of the parameters; return them, all states, and the norms."""
    params = [p.copy() for p in params]
    made = engine(rule, params, HYPER[rule], **pipeline)
    norms = [made.step(of_step).grad_norm for of_step in gradients]
    return params, [state for states in made.states for state in states], norms


def finite(shape, dtype, seed=0):
    return np.asarray(np.nan_to_num(numbers(shape, dtype, seed), posinf=1e3))


def assert_same_outcome(got, expected, what):
    for kind, ours, theirs in zip(("parameter", "state", "norm"), got, expected, strict=True):
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same_bits(a, b, f"{what}: {kind} {i}")


# 1. Any number of threads, any instruction set, any chunking, any position, any strides.


@every_rule
@every_dtype
@pytest.mark.parametrize("level", LEVELS)
def test_same_bits_for_any_instruction_set(rule, dtype, level):
    w, gradients = numbers(403, dtype), [numbers(403, dtype, seed) for seed in (1, 2, 3)]
    expected, states = specified(rule, w, gradients, hyper=HYPER[rule], **PIPELINE)
    assert rv._core.set_simd(level) == level
    made = engine(rule, w, HYPER[rule], **PIPELINE)
    for g in gradients:
        made.step(g)
    assert_same_bits(w, expected)
    for got, state in zip(made.states[0], states, strict=True):
        assert_same_bits(got, state)


@every_rule
def test_same_bits_for_any_thread_count(rule):
    shapes = [(40_000,), (3,), (0, 5), (91, 100), (), (1, 20_011)]
    params = [numbers(shape, np.float32, i) for i, shape in enumerate(shapes)]
    gradients = [[finite(p.shape, np.float32, seed) for p in params] for seed in (7, 8)]
    rv.set_num_threads(1)
    alone = stepped(rule, params, gradients, **PIPELINE, clip_norm=20.0)
    assert alone[2][0] > 20.0
    for threads in range(2, 9):
        assert rv.set_num_threads(threads) == threads
        for repetition in range(3):
            got = stepped(rule, params, gradients, **PIPELINE, clip_norm=20.0)
            assert_same_outcome(got, alone, f"{threads} threads, repetition {repetition}")


@every_rule
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_same_bits_for_every_length_up_to_130(rule, dtype):
    w, g = numbers(130, dtype), numbers(130, dtype, 1)
    expected, states = specified(rule, w, [g], hyper=HYPER[rule], **PIPELINE)
    for n in range(131):
        if rule in LAYERWISE:  # every length has norms of its own
            expected, states = specified(rule, w[:n], [g[:n]], hyper=HYPER[rule], **PIPELINE)
        (got,), own, _ = stepped(rule, [w[:n]], [[g[:n]]], **PIPELINE)
        assert_same_bits(got, expected[:n], n)
        for a, b in zip(own, states, strict=True):
            assert_same_bits(a, b[:n] if b.ndim else b, n)


@pytest.mark.parametrize("rule", ["adam", "sgd"])
@pytest.mark.parametrize("n", [4093, 8191, 32_771, 65_537, 1_000_003])
@pytest.mark.parametrize("threads", [1, 3])
def test_same_bits_for_large_prime_lengths(rule, n, threads):
    w, g = numbers(n, np.float32), finite(n, np.float32, 1)
    expected, states = specified(rule, w, [g], hyper=HYPER[rule], clip_norm=10.0, **PIPELINE)
    rv.set_num_threads(threads)
    (got,), own, _ = stepped(rule, [w], [[g]], clip_norm=10.0, **PIPELINE)
    assert_same_bits(got, expected)
    for a, b in zip(own, states, strict=True):
        assert_same_bits(a, b)


@every_rule
@every_dtype
def test_same_bits_at_every_position_in_an_array_and_nothing_else_is_written(rule, dtype):
    w, g = numbers(200, dtype), numbers(200, dtype, 1)
    expected, _ = specified(rule, w, [g], hyper=HYPER[rule], **PIPELINE)
    around = numbers(300, dtype, 2)
    for at in range(36):
        # Another position for the gradient, so that they are not aligned alike.
        memory, gradient = around.copy(), around.copy()
        memory[at : at + 200], gradient[2 * at : 2 * at + 200] = w, g
        engine(rule, memory[at : at + 200], HYPER[rule], **PIPELINE).step(gradient[2 * at : 2 * at + 200])
        assert_same_bits(memory, np.concatenate([around[:at], expected, around[at + 200 :]]), at)


def every_other(x):
    return np.repeat(np.repeat(x, 2, -1), 3, 0)[::3, :, ::2]


def inside(x):
    return np.pad(x, 3)[3:-3, 3:-3, 3:-3]


#: The same numbers in other memory.
LAYOUTS = {
    "contiguous": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "transposed": lambda x: np.ascontiguousarray(x.transpose(2, 0, 1)).transpose(1, 2, 0),
    "one axis reversed": lambda x: np.ascontiguousarray(x[:, ::-1])[:, ::-1],
    "all axes reversed": lambda x: np.ascontiguousarray(x[::-1, ::-1, ::-1])[::-1, ::-1, ::-1],
    "every other element": every_other,
    "inside a larger array": inside,
    "reversed Fortran": lambda x: np.asfortranarray(x[::-1])[::-1],
}


@every_rule
@every_dtype
@pytest.mark.parametrize("of_parameter", LAYOUTS)
def test_strided_parameters_and_gradients_equal_contiguous_ones(rule, dtype, of_parameter):
    shape = (5, 7, 12)
    w, g = numbers(shape, dtype), numbers(shape, dtype, 1)
    expected, states = specified(rule, w, [g], hyper=HYPER[rule], **PIPELINE)
    for of_gradient, lay_gradient in LAYOUTS.items():
        p = LAYOUTS[of_parameter](w.copy())
        made = engine(rule, p, HYPER[rule], **PIPELINE)
        made.step(lay_gradient(g))
        assert_same_bits(p, expected, of_gradient)
        for got, state in zip(made.states[0], states, strict=True):
            assert_same_bits(got, state, of_gradient)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=str)
def test_gaps_of_strided_parameters_are_not_written(dtype):
    memory = numbers((60, 50), dtype)
    before, view = memory.copy(), (slice(2, 58, 3), slice(40, 5, -2))
    g = numbers(memory[view].shape, dtype, 1)
    expected, _ = specified("adam", memory[view].copy(), [g], hyper=HYPER["adam"])
    engine("adam", memory[view], HYPER["adam"]).step(g)
    before[view] = expected
    assert_same_bits(memory, before)


def test_large_strided_arrays_equal_contiguous_ones_on_any_thread_count():
    w, g = numbers((300, 211), np.float32), numbers((300, 211), np.float32, 1)
    expected, _ = specified("adam", w, [g], hyper=HYPER["adam"], **PIPELINE)
    for threads in (1, 2, 5):
        rv.set_num_threads(threads)
        p = np.asfortranarray(w)
        engine("adam", p, HYPER["adam"], **PIPELINE).step(np.ascontiguousarray(g[:, ::-1])[:, ::-1])
        assert_same_bits(p, expected, threads)


def test_a_broadcast_gradient_equals_the_full_one():
    w, row = numbers((40, 30), np.float32), numbers(30, np.float32, 1)
    expected, _ = specified("adam", w, [np.tile(row, (40, 1))], hyper=HYPER["adam"])
    engine("adam", w, HYPER["adam"]).step(np.broadcast_to(row, (40, 30)))
    assert_same_bits(w, expected)


@pytest.mark.parametrize("rule", sorted(RULES.keys() - LAYERWISE))
def test_one_tensor_equals_the_same_elements_cut_into_many(rule):
    w, g = numbers(70_000, np.float32), numbers(70_000, np.float32, 1)
    whole = w.copy()
    engine(rule, whole, HYPER[rule], **PIPELINE).step(g)
    cuts = [0, 1, 1, 65, 129, 4096, 4097, 8192, 20_000, 52_769, 69_999]
    pieces = np.split(w, cuts)
    made = engine(rule, pieces, HYPER[rule], **PIPELINE)
    made.step(np.split(g, cuts))
    assert_same_bits(w, whole)


def test_one_tensor_equals_ten_thousand_tiny_ones():
    w, g = numbers(50_000, np.float32), numbers(50_000, np.float32, 1)
    whole = w.copy()
    engine("adam", whole, HYPER["adam"], **PIPELINE).step(g)
    engine("adam", list(w.reshape(-1, 5)), HYPER["adam"], **PIPELINE).step(list(g.reshape(-1, 5)))
    assert_same_bits(w, whole)


@every_rule
@pytest.mark.parametrize("n", [203, 40_009])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_flush_to_zero_and_another_rounding_mode_change_nothing(rule, n, dtype):
    # Numbers whose every operation rounds, and whose products and squares are subnormal.
    w, g = numbers(n, dtype), numbers(n, dtype, 1)
    g[1::2] *= np.sqrt(np.finfo(dtype).tiny)
    w[1::4] *= np.finfo(dtype).tiny
    expected, states = specified(rule, w, [g, g], hyper=HYPER[rule], **PIPELINE)
    made = engine(rule, w, HYPER[rule], **PIPELINE)
    rv.set_num_threads(3)
    rv._core.disturb_environment(True)
    try:
        made.step(g)
        made.step(g)
    finally:
        rv._core.disturb_environment(False)
    assert_same_bits(w, expected)
    for got, state in zip(made.states[0], states, strict=True):
        assert_same_bits(got, state)


@pytest.mark.parametrize("n", [203, 40_009])
def test_flush_to_zero_and_another_rounding_mode_change_no_clipped_step(n):
    tensors = [numbers(n, np.float64, i) for i in range(3)]
    gradients = [finite(n, np.float64, i) for i in range(3, 6)]
    expected = stepped("sgd", tensors, [gradients], clip_value=0.3, clip_norm=1.7)
    made = engine("sgd", tensors, HYPER["sgd"], clip_value=0.3, clip_norm=1.7)
    rv._core.disturb_environment(True)
    try:
        norm = made.step(gradients).grad_norm
    finally:
        rv._core.disturb_environment(False)
    assert_same_outcome((tensors, [], [norm]), expected, n)


@pytest.mark.parametrize("n", [203, 40_009])
def test_flush_to_zero_and_another_rounding_mode_change_no_norm(n):
    for scale in (1e-10, 1e-160):
        tensors = [np.random.default_rng(i).standard_normal(n) * scale for i in range(9)]
        expected = rv.global_norm(tensors)
        rv._core.disturb_environment(True)
        try:
            norm = rv.global_norm(tensors)
        finally:
            rv._core.disturb_environment(False)
        assert_same_bits(norm, expected)


@pytest.mark.parametrize("n", [203, 40_009])
def test_the_environment_of_the_caller_is_left_as_it_was_found(n):
    w, g, subnormal = np.ones(n, np.float32), np.ones(n, np.float32), np.full(8, 1e-40, np.float32)
    made = engine("sgd", w, HYPER["sgd"])
    rv._core.disturb_environment(True)
    try:
        made.step(g)
        flushed = subnormal * np.float32(1)
    finally:
        rv._core.disturb_environment(False)
    made.step(g)
    kept = subnormal * np.float32(1)
    assert not flushed.view(np.uint32).any()
    assert kept.view(np.uint32).all()


# 2. It equals the specification in the compute dtype, rounded once on store.


@every_rule
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_precision_gradients_of_float32_parameters_are_widened_exactly(rule, half):
    w, gradients = numbers(403, np.float32), [numbers(403, DTYPES[half], seed) for seed in (1, 2)]
    widened, _ = specified(rule, w, [g.astype(np.float32) for g in gradients], hyper=HYPER[rule], **PIPELINE)
    made = engine(rule, w, HYPER[rule], **PIPELINE)
    for g in gradients:
        made.step(g)
    assert_same_bits(w, widened)


@every_rule
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_precision_parameters_are_computed_in_float32_and_rounded_once_on_store(rule, half):
    dtype = DTYPES[half]
    w, g = numbers(403, dtype), numbers(403, dtype, 1)
    with np.errstate(all="ignore"):
        exact, states = specified(rule, w.astype(np.float32), [g.astype(np.float32)], hyper=HYPER[rule], **PIPELINE)
        expected = exact.astype(dtype)
    made = engine(rule, w, HYPER[rule], **PIPELINE)
    made.step(g)
    assert_same_bits(w, expected)
    for got, state in zip(made.states[0], states, strict=True):
        assert got.dtype == (np.float32 if got.ndim else np.float64)
        assert_same_bits(got, state)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("level", LEVELS)
def test_every_half_precision_number_is_read_right(half, level):
    rv._core.set_simd(level)
    g = np.arange(2**16, dtype=np.uint16).view(DTYPES[half])
    w = np.zeros(2**16, np.float32)
    engine("sgd", w, {"lr": 1.0}).step(g)
    with np.errstate(all="ignore"):
        assert_same_bits(w, np.float32(0) - g.astype(np.float32))


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("level", LEVELS)
def test_every_half_precision_number_and_the_ties_between_are_stored_right(half, level):
    rv._core.set_simd(level)
    with np.errstate(all="ignore"):
        w = np.arange(2**16, dtype=np.uint16).view(DTYPES[half])
        for lr in (0.0, 0.5, 0.25, 0.75, 1.25, 1.0009765):
            # w − γ·(next number): a quarter, half, … of the way to another number, and beyond.
            g = np.roll(w, 1)
            p = w.copy()
            expected, _ = specified("sgd", p, [g], hyper={"lr": lr})
            engine("sgd", p, {"lr": lr}).step(g)
            assert_same_bits(p, expected, lr)


# 4. Save and load resumes bit for bit.

RESUMED = {configuration(row): row for row in CONFIGURATIONS}


def schedule(step):
    return 0.02 / (1 + step)


def decay(step):
    return 0.1 * (step % 3)


def trained(row, shapes, gradients, *, threads, stop=None):
    """Train; at ``stop``, save, and go on with a new optimizer over copies of the parameters."""
    cls, arguments, _, _ = row
    rng = np.random.default_rng(5)
    params = {name: rng.standard_normal(shape).astype(dtype) for name, (shape, dtype) in shapes.items()}

    def make(params):
        groups = [("b*", {"lr": 0.03, "weight_decay": 0.0})]
        return cls(params, lr=schedule, weight_decay=decay, clip_norm=5.0, groups=groups, **arguments)

    rv.set_num_threads(threads)
    opt, infos = make(params), []
    for i, g in enumerate(gradients):
        if i == stop:
            state, params = copy.deepcopy(opt.state_dict()), {name: p.copy() for name, p in params.items()}
            for p in opt.state_dict()["states"].values():  # a copy: what is done to it changes no optimizer
                for array in p.values():
                    array[...] = np.nan
            rv.set_num_threads(5 - threads)
            opt = make(params)
            opt.load_state_dict(state)
        info = opt.step(g)
        infos.append((info.step, info.lr, info.grad_norm))
    return params, opt.state_dict(), infos


@pytest.mark.parametrize("row", RESUMED.values(), ids=RESUMED)
@pytest.mark.parametrize("size", [17, 7000])
def test_a_resumed_run_equals_the_uninterrupted_one(row, size):
    shapes = {"w": ((size, 5), np.float32), "b": ((5,), np.float64), "b2": ((size,), np.float16)}
    rng = np.random.default_rng(6)
    gradients = [
        {name: rng.standard_normal(shape).astype(dtype) for name, (shape, dtype) in shapes.items()} for _ in range(6)
    ]
    gradients[0]["b"] = gradients[3]["b"] = gradients[2]["w"] = None  # so t differs between them
    unbroken = trained(row, shapes, gradients, threads=1)
    assert unbroken[1]["updates"] == {"w": 5, "b": 4, "b2": 6}
    for stop in (1, 4):
        params, state, infos = trained(row, shapes, gradients, threads=4, stop=stop)
        assert infos == unbroken[2]
        assert state["updates"] == unbroken[1]["updates"]
        for name, p in unbroken[0].items():
            assert_same_bits(params[name], p, name)
            for kind, array in unbroken[1]["states"][name].items():
                assert_same_bits(state["states"][name][kind], array, f"{name} {kind}")


@pytest.mark.parametrize("t", [2**24 - 1, 2**24 + 1, 2**31, 2**32 - 1, 2**32 + 5, 2**40 + 3, 2**53 + 1])
@pytest.mark.parametrize("cls, rule", [(rv.Adam, "adam"), (rv.Adagrad, "adagrad_mean")])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_step_counts_far_beyond_float32_and_32_bits_equal_the_specification(t, cls, rule, dtype):
    # β so near 1 that the corrections are still at work.
    own = {"betas": (1 - 1e-8, 1 - 1e-11)} if rule == "adam" else {"accumulate": "mean"}
    hyper = {"lr": 0.1, "eps": 1e-3}
    if rule == "adam":
        hyper |= {"beta1": 1 - 1e-8, "beta2": 1 - 1e-11, "bias_correction": 1.0, "eps_inside": 0.0, "eps_hat": 0.0}
    w, g = (np.random.default_rng(seed).standard_normal(50).astype(dtype) for seed in (0, 1))
    states = [np.abs(np.random.default_rng(seed).standard_normal(50)).astype(dtype) for seed in (2, 3)]
    states = states[: len(RULES[rule]["states"])]
    expected, new = specified(rule, w, [g, g], hyper=hyper, first=t, states=states)
    opt = cls(w, lr=0.1, eps=1e-3, **own)
    state = opt.state_dict()
    state["step"], state["updates"]["params"] = t - 1, t - 1
    state["states"]["params"] = dict(zip(RULES[rule]["states"], states, strict=True))
    opt.load_state_dict(state)
    opt.step(g)
    assert opt.step(g).step == t + 1
    assert_same_bits(w, expected)
    for got, array in zip(opt.state_dict()["states"]["params"].values(), new, strict=True):
        assert_same_bits(got, array)


def test_the_specification_is_of_the_dtype_that_the_states_have():
    for name, dtype in DTYPES.items():
        made = engine("adam", np.zeros(3, dtype), HYPER["adam"])
        assert {state.dtype for state in made.states[0]} == {specification.compute_dtype(dtype)}, name
