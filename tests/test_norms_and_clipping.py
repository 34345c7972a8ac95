"""Norms by the canonical tree, clipping by value and by norm, and what is done about gradients that are not finite."""

import math
from functools import partial

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ravine as rv
from tests import specification
from tests.conftest import RULES, assert_same_bits, engine, hyper_sets, instruction_sets
from tests.reference import norms, tree
from tests.test_cuda_step import device_engine

DTYPES = {name: np.dtype(name) for name in ("float32", "float64", "float16")} | {
    "bfloat16": np.dtype(ml_dtypes.bfloat16)
}
NAN, INF = np.nan, np.inf

every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def numbers(shape, dtype=np.float32, seed=0):
    return np.asarray(np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def literal(tensors):
    return float(tree.norm_tensors(tensors))


# The norm is the literal tree's.

LENGTHS = [*range(131), 4095, 4096, 4097, 8191, 8192, 8193, 12_289, 16_385, 20_557, 32_771, 65_537]


@every_dtype
def test_the_norm_equals_the_literal_tree_at_every_length(dtype):
    x = numbers(max(LENGTHS), dtype)
    for n in LENGTHS:
        assert_same_bits(rv.global_norm(x[:n]), literal([x[:n]]), n)


def test_the_norm_of_a_million_elements_equals_the_literal_tree():
    x = numbers(1_000_003)
    assert_same_bits(rv.global_norm(x), literal([x]))


#: Nestings, and their arrays in order.
A, B, C, D, E = numbers((70, 80)), numbers(()), numbers((3, 0)), numbers(4097, np.float64), numbers((2, 3), np.float16)
F = numbers(9000, ml_dtypes.bfloat16)
NESTINGS = [
    (A, [A]),
    ([], []),
    ({}, []),
    ({"a": []}, []),
    (C, [C]),
    ([C, A], [C, A]),
    ({"layer": {"w": A, "b": B}, "out": (D, [E, F])}, [A, B, D, E, F]),
    ((A, (B, (C, (D, (E, (F,)))))), [A, B, C, D, E, F]),
    ([D, D, D, E, E, E, F], [D, D, D, E, E, E, F]),
    ({"z": A, "a": D, "m": F}, [A, D, F]),
]


@pytest.mark.parametrize("nesting, arrays", NESTINGS, ids=range(len(NESTINGS)))
def test_the_norm_of_a_nesting_adds_its_arrays_in_order(nesting, arrays):
    assert_same_bits(rv.global_norm(nesting), literal(arrays))


@pytest.mark.parametrize("count", range(1, 18))
def test_tensors_combine_by_pairs(count):
    tensors = [numbers(5000 if i % 3 else 7, np.float64, i) * 10.0 ** (i % 5) for i in range(count)]
    assert_same_bits(rv.global_norm(tensors), literal(tensors))
    info = engine("sgd", [np.zeros(len(g)) for g in tensors], {"lr": 0.1}, clip_norm=1.0).step(tensors)
    assert_same_bits(info.grad_norm, literal(tensors))


@every_dtype
@pytest.mark.parametrize("level", instruction_sets())
def test_the_norm_is_the_same_for_any_instruction_set_and_thread_count(dtype, level):
    tensors = [numbers(n, dtype, n) for n in (40_000, 5, 12_345, 0, 8193)]
    expected = literal(tensors)
    rv._core.set_simd(level)
    params = [np.zeros(len(g), dtype) for g in tensors]
    made = engine("sgd", params, {"lr": 0.1}, clip_norm=1.0)
    for threads in range(1, 9):
        rv.set_num_threads(threads)
        assert_same_bits(rv.global_norm(tensors), expected, threads)
        assert_same_bits(made.step(tensors).grad_norm, expected, threads)


LAYOUTS = {
    "Fortran": np.asfortranarray,
    "transposed": lambda x: np.ascontiguousarray(x.transpose(2, 0, 1)).transpose(1, 2, 0),
    "reversed": lambda x: np.ascontiguousarray(x[::-1, :, ::-1])[::-1, :, ::-1],
    "every other": lambda x: np.repeat(x, 2, -1)[..., ::2],
    "inside": lambda x: np.pad(x, 2)[2:-2, 2:-2, 2:-2],
}


@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_norm_of_strided_memory_is_that_of_the_logical_order(dtype, layout):
    x = numbers((21, 17, 33), dtype)
    strided = LAYOUTS[layout](x)
    assert not strided.flags.c_contiguous
    assert_same_bits(rv.global_norm(strided), literal([x]))
    info = engine("sgd", np.zeros(x.shape, dtype), {"lr": 0.1}, clip_norm=1.0).step(strided)
    assert_same_bits(info.grad_norm, literal([x]))


def test_the_norm_of_a_broadcast_view_is_that_of_the_full_array():
    row = numbers(200)
    assert_same_bits(rv.global_norm(np.broadcast_to(row, (50, 200))), literal([np.tile(row, (50, 1))]))


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(), max_size=70), max_size=5))
def test_the_norm_of_any_numbers_equals_the_literal_tree(lists):
    tensors = [np.array(values) for values in lists]
    assert_same_bits(rv.global_norm(tensors), literal(tensors))


def test_the_norm_agrees_with_the_mathematics():
    tensors = [numbers((300, 70), np.float64, 1), numbers(999, np.float64, 2)]
    np.testing.assert_allclose(rv.global_norm(tensors), norms.global_norm(tensors), rtol=1e-14)
    assert rv.global_norm([np.array([3.0], np.float32), np.array([4.0])]) == 5.0


def test_squares_of_float32_do_not_overflow():
    g = np.full(2, 1e20, np.float32)
    norm = float(g[0]) * math.sqrt(2)
    np.testing.assert_allclose(rv.global_norm(g), norm, rtol=1e-15)
    assert rv.clip_by_global_norm_(g, 1.0) == pytest.approx(norm, rel=1e-15)
    np.testing.assert_allclose(g, math.sqrt(0.5), rtol=1e-6)


# Where squares of float64 overflow or underflow.

#: Powers of two beyond which they do, both ways, up to the largest numbers and down to the smallest.
FAR = [-1074, -1020, -900, -600, -520, -455, 500, 520, 664, 900, 1020, 1021]
#: Elements, and their norm.
TINIEST = 2.0**-1074
BEYOND = [
    ([3e200, 4e200], 5e200),
    ([3e-200, 4e-200], 5e-200),
    ([1.5e308], 1.5e308),
    ([TINIEST], TINIEST),
    ([TINIEST] * 3, 2 * TINIEST),  # √3 rounds to 2
    ([TINIEST] * 4, 2 * TINIEST),
    ([3 * TINIEST, 4 * TINIEST, 0.0], 5 * TINIEST),
    ([1e-200] * 10_000, 1e-198),
    ([1e200] * 10_000, 1e202),
    ([1e-162] + [0.0] * 9000, 1e-162),
    ([1.5e308, 1.5e308], INF),  # it is more than the largest number
    ([0.0, -0.0], 0.0),
    ([1e200, INF], INF),
    ([1e200, NAN], NAN),
    ([INF, 1e-200], INF),
]


@pytest.mark.parametrize("values, norm", BEYOND, ids=lambda x: "" if isinstance(x, list) else str(x))
@pytest.mark.parametrize("layout", ["contiguous", "strided", "split", "with float32"])
def test_norms_beyond_what_squares_hold_are_right(gpu, values, norm, layout):
    x = np.array(values)
    there = gpu.asarray(x)
    given = {
        "contiguous": lambda x: x,
        "strided": lambda x: x[::-1],
        "split": lambda x: {"a": x[:1], "b": [x[1:], None]},
        "with float32": lambda x: [x, x[:0].astype(np.float32), None],
    }[layout]
    for tensors in (given(x), given(there) if layout != "strided" else there):
        np.testing.assert_allclose(float(rv.global_norm(tensors)), norm, rtol=1e-15)
    for tensors in (x, there):
        np.testing.assert_allclose(float(rv.tensor_norms({"x": tensors})["x"]), norm, rtol=1e-15)


@pytest.mark.parametrize("power", FAR)
def test_a_norm_is_that_of_ordinary_numbers_times_a_power_of_two(gpu, power):
    ordinary = [np.round(numbers(n, np.float64, n) * 64) for n in (3, 5000, 0, 70, 9000)]
    ordinary = [x / 2**20 for x in ordinary] if power > 1000 else ordinary
    expected = np.ldexp(np.float64(rv.global_norm(ordinary)), power)
    each = {name: np.ldexp(np.float64(norm), power) for name, norm in rv.tensor_norms(ordinary).items()}
    moved = [np.ldexp(x, power) for x in ordinary]
    for tensors in (moved, [gpu.asarray(x) for x in moved], [x[::-1][::-1] for x in moved]):
        assert_same_bits(np.float64(float(rv.global_norm(tensors))), expected)
        assert {name: float(norm) for name, norm in rv.tensor_norms(tensors).items()} == each


@pytest.mark.parametrize("power", FAR)
def test_lengths_and_products_of_vectors_are_those_of_ordinary_ones_times_a_power_of_two(gpu, power):
    a, b = (np.round(numbers(500, np.float64, k) * 64) / (2**20 if power > 1000 else 1) for k in (1, 2))
    for put in (np.asarray, gpu.asarray):
        there = put(np.ldexp(a, power))
        assert rv.norms.length(there) == np.ldexp(np.sqrt(a @ a), power)
        for other in (power, -power, 0):
            m, k = rv.norms.dot(there, put(np.ldexp(b, max(-1040, min(1000, other)))))
            assert k % 2 == 0
            assert np.ldexp(m, k - power - max(-1040, min(1000, other))) == a @ b
    assert rv.norms.length(np.zeros(3)) == 0 == rv.norms.length(np.zeros(0))
    assert rv.norms.length(np.array([1e200, INF])) == INF
    assert math.isnan(rv.norms.length(np.array([1e200, NAN])))
    assert rv.norms.dot(np.array([1.0, 2.0]), np.array([3.0, 4.0])) == (11.0, 0)


def test_tensors_of_all_sizes_have_the_norm_of_the_largest(gpu):
    tensors = {"huge": np.array([3e200, 4e200]), "tiny": np.array([3e-200, 4e-200]), "small": np.float32([3, 4])}
    norms = {"huge": 5e200, "tiny": 5e-200, "small": 5.0}
    for put in (np.asarray, gpu.asarray):
        there = {name: put(x) for name, x in tensors.items()}
        assert float(rv.global_norm(there)) == pytest.approx(5e200, rel=1e-15)
        assert {name: float(norm) for name, norm in rv.tensor_norms(there).items()} == pytest.approx(norms, rel=1e-15)
        del there["huge"]
        assert float(rv.global_norm(there)) == 5.0
        there["small"] = put(np.zeros(3, np.float32))
        assert float(rv.global_norm(there)) == pytest.approx(5e-200, rel=1e-15)


#: Gradients, the limit, and what clipping makes of them; float64 unless it is said.
CLIPPED_FAR = {
    "huge": ([3e200, 4e200], 1.0, [0.6, 0.8]),
    "subnormal factor": ([3e307, 4e307], 1.0, [0.6, 0.8]),
    "norm beyond all numbers": ([1.5e308] * 4, 1.0, [0.5] * 4),
    "largest": ([np.finfo(float).max] * 16, 3.0, [0.75] * 16),
    "tiny": ([3e-200, 4e-200], 5e-210, [3e-210, 4e-210]),
    "tiny within": ([3e-200, 4e-200], 1e-199, [3e-200, 4e-200]),
    "huge within": ([3e200, 4e200], 6e200, [3e200, 4e200]),
    "subnormal": ([3e-320, 4e-320], 1e-319, [3e-320, 4e-320]),
    "tiny limit": ([3e200, 4e200], 1e-200, [6e-201, 8e-201]),
    "tiny limit, ordinary norm": ([3e10, 4e10], 1e-300, [6e-301, 8e-301]),
    "subnormal limit": ([3e300, 4e300], 1e-310, [6e-311, 8e-311]),
    "huge limit": ([9e307, 12e307], 1e308, [6e307, 8e307]),
    "wide": ([3e200, 4e200, 1e-100, 0.0, -1e50], 1.0, [0.6, 0.8, 2e-301, 0.0, -2e-151]),
}
FLOAT32_FAR = {
    "subnormal factor": ([3e38, 3e38, 3e38, 3e38], 1e-3, [5e-4] * 4),
    "factor 0": ([3e30, 4e30], 1e-16, [6e-17, 8e-17]),
    "subnormal limit": ([3e30, 4e30], 1e-40, [6e-41, 8e-41]),
}


@pytest.mark.parametrize("case", [*CLIPPED_FAR, *(f"float32 {name}" for name in FLOAT32_FAR)])
@pytest.mark.parametrize("grad_scale", [None, 2.0**-126, 2.0**126, 3.0, 1024.0])
def test_clipping_by_norm_is_right_at_every_size(gpu, case, grad_scale):
    name, narrow = case.removeprefix("float32 "), case.startswith("float32")
    values, limit, expected = (FLOAT32_FAR if narrow else CLIPPED_FAR)[name]
    dtype = np.dtype(np.float32 if narrow else np.float64)
    with np.errstate(over="ignore"):
        g = np.array(values, dtype) if grad_scale is None else np.array(values, dtype) * dtype.type(grad_scale)
    if not np.isfinite(g).all() or (grad_scale and np.any((np.array(values) != 0) & (abs(g) < np.finfo(dtype).tiny))):
        pytest.skip("the scaled gradients are no normal numbers")
    near = {
        "rtol": 1e-15 * (4 if grad_scale == 3.0 else 2) if dtype == np.float64 else 1e-6,
        "atol": float(np.finfo(dtype).smallest_subnormal),
    }
    of_clip = {"clip_norm": limit, "nonfinite": "raise"}
    for put in (np.asarray, gpu.asarray):
        w = put(np.zeros(len(values), dtype))
        info = rv.SGD(w, lr=1.0, **of_clip).step(put(g), grad_scale=grad_scale)
        np.testing.assert_allclose(-rv.to_host(w), expected, **near)
        with np.errstate(over="ignore"):
            norm = math.hypot(*values)
        assert info.grad_norm == pytest.approx(norm, rel=1e-6 if narrow else 1e-15)
        if grad_scale is None:
            there = put(g.copy())
            assert float(rv.clip_by_global_norm_(there, limit)) == info.grad_norm
            np.testing.assert_allclose(rv.to_host(there), expected, **near)


@pytest.mark.parametrize("clip_eps, factor", [(5e200, 0.5), (1e-6, 1.0), (1e308, 5e-108)])
def test_clip_eps_is_added_to_norms_of_every_size(gpu, clip_eps, factor):
    for put in (np.asarray, gpu.asarray):
        w = put(np.zeros(2))
        rv.SGD(w, lr=1.0, clip_norm=1.0, clip_eps=clip_eps).step(put(np.array([3e200, 4e200])))
        np.testing.assert_allclose(-rv.to_host(w), np.array([0.6, 0.8]) * factor, rtol=1e-14)
    w = np.zeros(4)
    rv.SGD(w, lr=1.0, clip_norm=1.0, clip_eps=1.5e308).step(np.full(4, 1.5e308))
    np.testing.assert_allclose(-w, np.full(4, 1 / 3), rtol=1e-15)


def test_clipping_by_value_comes_before_norms_of_every_size(gpu):
    for put in (np.asarray, gpu.asarray):
        w = put(np.zeros(3))
        info = rv.SGD(w, lr=1.0, clip_norm=1.0, clip_value=3e307).step(put(np.array([4e307, -4e307, 1e307])))
        norm = math.sqrt(19) * 1e307
        assert info.grad_norm == pytest.approx(norm, rel=1e-15)
        np.testing.assert_allclose(-rv.to_host(w), np.array([3.0, -3.0, 1.0]) / math.sqrt(19), rtol=1e-15)


#: Elements of every exponent.
ANY = st.floats() | st.builds(math.ldexp, st.floats(-1, 1), st.integers(-1100, 1023))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_clipping_any_numbers_equals_the_specification_on_every_backend(gpu, dtype, data):
    if dtype == np.float32:
        elements = st.floats(width=32) | st.sampled_from([3e38, 1e-45])
    else:
        power = data.draw(st.sampled_from([0, -1000, 900]))
        elements = ANY.map(lambda x: math.ldexp(x, power) if abs(x) < 2.0**100 else x)
    lists = data.draw(st.lists(st.lists(elements, min_size=1, max_size=5), min_size=1, max_size=3))
    gradients = [np.array(values, dtype) for values in lists]
    limit = math.ldexp(data.draw(st.floats(1, 2, exclude_max=True)), data.draw(st.integers(-1074, 1023)))
    clip_value = data.draw(st.none() | st.floats(1e-300, 1e300))
    clip_eps = data.draw(st.sampled_from([0.0, 1e-6, 1e-310, 1e308]))
    grad_scale = data.draw(st.sampled_from([None, 2.0**-126, 2.0**126, 0.7, 65537.0]))
    with np.errstate(all="ignore"):
        true = [specification.unscaled(g, grad_scale) for g in gradients]
    norm = specification.global_norm(true, clip_value)
    clip = specification.norm_scale(norm, limit, clip_eps)
    options = {"clip_norm": limit, "clip_value": clip_value, "clip_eps": clip_eps}
    expected = [
        specification.step(
            "sgd",
            np.ones_like(g),
            g,
            [],
            t=1,
            hyper={"lr": 1.0},
            scale=clip,
            clip_value=clip_value,
            grad_scale=grad_scale,
        )[0]
        for g in gradients
    ]
    for put in (np.asarray, gpu.asarray):
        params = [put(np.ones_like(g)) for g in gradients]
        info = rv.SGD(params, lr=1.0, **options).step([put(g) for g in gradients], grad_scale=grad_scale)
        assert_same_bits(np.float64(info.grad_norm), np.float64(norm))
        for w, right in zip(params, expected, strict=True):
            assert_same_bits(rv.to_host(w), right)


@pytest.mark.parametrize("none", [(), (0,), (1,), (0, 2), (1, 2, 4), (0, 1, 2, 3, 4)])
def test_a_gradient_that_is_none_keeps_its_place_in_the_tree_as_a_sum_of_zero(none):
    made = engine("sgd", [np.zeros(9) for _ in range(5)], {"lr": 0.1}, clip_norm=1.0)
    for seed in range(50):
        gradients = [None if i in none else numbers(9, np.float64, 5 * seed + i) for i in range(5)]
        norm = rv.global_norm(gradients)
        assert_same_bits(norm, specification.global_norm(gradients))
        if len(none) < 5:  # a step without any gradient raises
            assert_same_bits(made.step(gradients).grad_norm, norm, "step")


# Clipping.


def clipped_by_step(gradients, **clip):
    """What a step makes of the gradients: 0 − 1·g."""
    params = [np.zeros_like(g) for g in gradients]
    info = engine("sgd", params, {"lr": 1.0}, **clip).step(gradients)
    return params, info.grad_norm


def clipped_by_function(gradients, max_norm):
    gradients = [g.copy() for g in gradients]
    norm = rv.clip_by_global_norm_(gradients, max_norm)
    return gradients, norm


#: Gradients of a total norm, in float64.
CLIPPED = {
    "beyond": [[3.0, -4.0], [12.0]],
    "far beyond": [[3e30, -4e30], [1e-3]],
    "exactly": [[0.3, -0.4], [1.2]],
    "within": [[0.1, -0.2], [0.05]],
    "zero": [[0.0, -0.0], [0.0]],
    "NaN": [[1.0, NAN], [3.0]],
    "inf": [[1.0, -INF], [-0.0]],
    "both": [[NAN, INF], [2.0]],
    "subnormal": [[1e-40, 2e-7], [3.0]],
}


@every_dtype
@pytest.mark.parametrize("case", CLIPPED)
@pytest.mark.parametrize("clip_norm", [1.3, 1e-6, 1e-300, 1e300, "norm"])
def test_clipping_by_norm_equals_its_definition_in_the_step_and_the_function(dtype, case, clip_norm):
    with np.errstate(all="ignore"):
        gradients = [np.array(values).astype(dtype) for values in CLIPPED[case]]
    norm = specification.global_norm(gradients)
    if clip_norm == "norm":
        clip_norm = norm if 0 < norm < INF else 1.0
    clip = specification.norm_scale(norm, clip_norm)
    compute = specification.compute_dtype(dtype).type
    with np.errstate(all="ignore"):
        widened = [g.astype(compute) for g in gradients]
        exact = [clip.applied(g) if clip else g for g in widened]
        expected = [g.astype(dtype) for g in exact]
        moved = [(compute(0) - g).astype(dtype) for g in exact]
    by_function, norm_before = clipped_by_function(gradients, clip_norm)
    by_step, grad_norm = clipped_by_step(gradients, clip_norm=clip_norm)
    for got, want, w, minus in zip(by_function, expected, by_step, moved, strict=True):
        assert_same_bits(got, want)
        assert_same_bits(w, minus)
    assert_same_bits(norm_before, norm)
    assert_same_bits(grad_norm, norm)


def test_a_nan_norm_makes_everything_nan_and_an_infinite_one_leaves_zeros_and_nans():
    for clip in (clipped_by_function, lambda g, c: clipped_by_step(g, clip_norm=c)):
        (a, b), norm = clip([np.array([1.0, 2.0]), np.array([NAN])], 1.0)
        assert np.isnan(norm)
        assert np.isnan(a).all()
        assert np.isnan(b).all()
        (a, b), norm = clip([np.array([1.0, -INF]), np.array([-2.0, INF])], 1.0)
        assert norm == INF
        np.testing.assert_array_equal(np.concatenate([a, b]), [0, NAN, 0, NAN])


@every_dtype
def test_the_clipped_norm_exceeds_the_limit_by_a_few_ulps_at_most(dtype):
    g = numbers(10_000, dtype)
    rv.clip_by_global_norm_(g, 1.5)
    resolution = 2.0**-53 if dtype == np.float64 else float(ml_dtypes.finfo(dtype).eps)
    assert rv.global_norm(g) <= 1.5 * (1 + 4 * resolution)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clipping_by_value_cuts_elements_keeps_nan_and_comes_before_the_norm(dtype):
    g = np.array([3.0, -4.0, 0.1, -0.0, INF, -INF, NAN], dtype)
    cut = np.array([0.5, -0.5, 0.1, -0.0, 0.5, -0.5, NAN], dtype)
    (w,), _ = clipped_by_step([g], clip_value=0.5)
    assert_same_bits(w, dtype(0) - cut)
    (w,), norm = clipped_by_step([g[:-1]], clip_value=0.5, clip_norm=0.25)
    assert_same_bits(norm, literal([cut[:-1]]))
    assert_same_bits(w, dtype(0) - cut[:-1] * dtype(0.25 / norm))


@every_dtype
def test_the_norm_of_the_value_clipped_gradient_is_taken_in_the_compute_dtype(dtype):
    # 0.1 is another number in float32 and float64.
    g = [numbers(5000, dtype), numbers((30, 30), dtype, 1)]
    _, norm = clipped_by_step(g, clip_value=0.1, clip_norm=1.0)
    assert_same_bits(norm, specification.global_norm(g, 0.1))


@pytest.mark.parametrize("bad", [0.0, -0.0, -1.0, NAN, -INF])
def test_a_limit_that_is_not_a_number_above_zero_raises(bad):
    g = np.ones(2)
    with pytest.raises(ValueError, match="max_norm"):
        rv.clip_by_global_norm_(g, bad)
    for option in ("clip_norm", "clip_value"):
        with pytest.raises(ValueError, match=option):
            rv.SGD(np.ones(2), lr=0.1, **{option: bad})
    assert_same_bits(g, np.ones(2))


def test_values_are_cut_off_at_a_finite_number():
    with pytest.raises(ValueError, match="clip_value: expected a finite number > 0"):
        rv.SGD(np.ones(2), lr=0.1, clip_value=INF)


@every_dtype
@pytest.mark.parametrize("case", CLIPPED)
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_an_infinite_limit_measures_and_clips_nothing(dtype, case, eps):
    with np.errstate(all="ignore"):
        gradients = [np.array(values).astype(dtype) for values in CLIPPED[case]]
    plain, nothing = clipped_by_step(gradients)
    measured, norm = clipped_by_step(gradients, clip_norm=INF, clip_eps=eps)
    by_function, of_function = clipped_by_function(gradients, INF)
    assert nothing is None
    for value in (norm, of_function):
        assert_same_bits(np.float64(value), np.float64(specification.global_norm(gradients)))
    for got, want, untouched, g in zip(measured, plain, by_function, gradients, strict=True):
        assert_same_bits(got, want)
        assert_same_bits(untouched, g)


@pytest.mark.parametrize("case", ["beyond", "NaN", "inf"])
def test_so_it_does_on_a_device(gpu, case):
    gradients = [np.array(values, np.float32) for values in CLIPPED[case]]
    here, there = ([xp.zeros(g.shape, np.float32) for g in gradients] for xp in (np, gpu))
    a, b = rv.SGD(here, lr=1.0, clip_norm=INF), rv.SGD(there, lr=1.0, clip_norm=INF)
    assert repr(b.step([gpu.asarray(g) for g in gradients])) == repr(a.step(gradients))
    on_device = [gpu.asarray(g) for g in gradients]
    assert_same_bits(rv.clip_by_global_norm_(on_device, INF).get(), np.float64(rv.global_norm(gradients)))
    for x, y, g, own in zip(there, here, on_device, gradients, strict=True):
        assert_same_bits(x.get(), y)
        assert_same_bits(g.get(), own)


@pytest.mark.parametrize("make", [rv.AdamW, rv.LAMB, rv.Muon, rv.Adafactor], ids=lambda make: make.__name__)
def test_every_optimizer_may_only_measure(make, tmp_path):
    runs = []
    for clip_norm in (None, INF):
        w = {"w": numbers((5, 4), np.float32) * 0 + 1}
        g = {"w": np.full((5, 4), 3.0, np.float32)}
        opt = make(w, lr=0.1, clip_norm=clip_norm)
        norm = opt.step(g).grad_norm
        opt.save(tmp_path / f"{clip_norm}")
        opt.load(tmp_path / f"{clip_norm}")
        opt.step(g)
        runs.append((w["w"].tobytes(), opt.formula(), norm))
    assert runs[0][:2] == runs[1][:2]
    assert (runs[0][2], runs[1][2]) == (None, rv.global_norm(g))
    with pytest.raises(ValueError, match=r"clip_norm: expected inf, got None"):
        opt.load(tmp_path / "None")
    with pytest.raises(ValueError, match=r"clip_norm: expected None, got inf"):
        make(w, lr=0.1).load(tmp_path / "inf")


def test_the_function_changes_nothing_if_any_array_is_read_only():
    a, b = np.full(3, 5.0), np.full(3, 5.0)
    b.flags.writeable = False
    with pytest.raises(ValueError, match=r"1.*read-only"):
        rv.clip_by_global_norm_([a, b], 1.0)
    assert_same_bits(a, np.full(3, 5.0))


@pytest.mark.parametrize(
    "leaf",
    [1.0, [2.0], "g", np.ones(2, np.int64), np.ones(2, np.clongdouble), object()],
    ids=lambda leaf: type(leaf).__name__,
)
def test_what_is_not_a_float_array_raises_by_name(leaf):
    with pytest.raises(TypeError, match="bias"):
        rv.global_norm({"w": np.ones(2), "bias": leaf})


def test_gradients_are_only_read_by_a_clipped_step():
    g = np.full(3, 5.0)
    g.flags.writeable = False
    rv.SGD(np.ones(3), lr=0.1, clip_norm=1.0, clip_value=2.0).step(g)
    assert_same_bits(g, np.full(3, 5.0))


def test_the_clipped_step_has_no_norm_to_report_unless_it_needs_one():
    assert rv.SGD(np.ones(3), lr=0.1, clip_value=1.0).step(np.ones(3)).grad_norm is None


# Gradients that are not finite.

HYPER = {rule: next(hyper_sets(rule)) for rule in RULES}
SQUARING = {rule for rule, parts in RULES.items() if "second" in parts["states"].values()}


def test_the_rules_that_square_gradients_are_those_with_an_adaptive_step():
    named = {rule for rule in RULES if rule.startswith(("adam", "adagrad", "rmsprop"))} - {"adamax"}
    others = {"adadelta", "nadam", "radam", "adabelief", "yogi", "ademamix", "adopt", "adan", "schedule_free_adamw"}
    assert named | others | {"lamb", "madgrad"} == SQUARING


def schedule(step):
    return 0.1 / (1 + step)


def snapshot(opt, params):
    return [params[name].copy() for name in params], opt.state_dict(), opt.lr, opt.steps


def assert_unchanged(before, after):
    for a, b in zip(before[0], after[0], strict=True):
        assert_same_bits(a, b)
    for key in ("step", "updates", "rule"):
        assert before[1][key] == after[1][key]
    for name, states in before[1]["states"].items():
        for kind, state in states.items():
            assert_same_bits(after[1]["states"][name][kind], state)
    assert before[2:] == after[2:]


@pytest.mark.parametrize("cls", [rv.Adam, rv.SGD, rv.RMSprop, rv.Adagrad, rv.Lion])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("n", [5, 50_000])
def test_a_skipped_step_did_not_happen(cls, bad, n):
    def train(with_bad):
        params = {"w": numbers(n, np.float32, 1), "b": numbers(3, np.float64, 2)}
        opt = cls(params, lr=schedule, nonfinite="skip", clip_norm=3.0, weight_decay=0.1)
        opt.step({"w": numbers(n, np.float32, 3), "b": numbers(3, np.float64, 4)})
        if with_bad:
            g = {"w": numbers(n, np.float32, 5), "b": np.array([1.0, bad, 2.0])}
            before = snapshot(opt, params)
            info = opt.step(g)
            assert info.skipped
            assert info.step == 1
            assert info.nonfinite == {"b": (1, 1)}
            assert_unchanged((*before[:2], schedule(1), 1), snapshot(opt, params))
        info = opt.step({"w": numbers(n, np.float32, 6), "b": None})
        assert (info.step, info.lr, info.skipped, info.nonfinite) == (2, schedule(1), False, {})
        return snapshot(opt, params)

    assert_unchanged(train(False), train(True))


@pytest.mark.parametrize("n", [5, 50_000])
def test_a_raised_step_did_not_happen(n):
    params = {"w": numbers(n, np.float32, 1), "b": numbers(3, np.float64, 2)}
    opt = rv.Adam(params, lr=0.1, nonfinite="raise")
    good = {"w": numbers(n, np.float32, 3), "b": numbers(3, np.float64, 4)}
    opt.step(good)
    before = snapshot(opt, params)
    with pytest.raises(FloatingPointError, match=r"'w': \(2, 1\)"):
        opt.step({"w": np.array([1, INF, 2, NAN] + [0] * (n - 4), np.float32), "b": np.zeros(3)})
    assert_unchanged(before, snapshot(opt, params))
    assert opt.step(good).step == 2


def test_propagated_numbers_go_where_the_formula_takes_them():
    w = np.ones(4)
    info = rv.SGD(w, lr=1.0).step(np.array([NAN, INF, -INF, 1.0]))
    assert (info.skipped, info.nonfinite, info.step) == (False, None, 1)
    np.testing.assert_array_equal(w, [NAN, -INF, INF, 0.0])


@pytest.mark.parametrize("layout", ["contiguous", *LAYOUTS])
def test_counts_and_first_indices_are_those_of_c_order(layout):
    g = np.zeros((11, 13, 17), np.float32)
    bad = [301, 302, 1500, 2000, 2430]
    g.reshape(-1)[bad] = [NAN, INF, -INF, NAN, 2e38]  # the last is finite
    laid = g if layout == "contiguous" else LAYOUTS[layout](g)
    for threads in (1, 4):
        rv.set_num_threads(threads)
        params = {"a": np.zeros(40_000, np.float32), "b": np.zeros(g.shape, np.float32), "c": np.zeros(2)}
        opt = rv.SGD(params, lr=0.1, nonfinite="skip")
        info = opt.step({"a": np.zeros(40_000, np.float32), "b": laid, "c": np.array([0.0, INF])})
        assert info.nonfinite == {"b": (4, 301), "c": (1, 1)}


@every_dtype
@pytest.mark.parametrize("at", [0, 63, 127, 128, 4095, 4096, 8191, 8192, 9999])
def test_one_bad_element_is_found_wherever_it_is(dtype, at):
    g = np.ones(10_000, dtype)
    g[at] = NAN
    info = rv.SGD(np.ones(10_000, dtype), lr=0.1, nonfinite="skip").step(g)
    assert info.nonfinite == {"params": (1, at)}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rules_that_square_refuse_what_their_states_cannot_hold(rule, dtype):
    largest = np.finfo(dtype).max
    # The largest number whose square is finite.
    root = np.sqrt(largest)
    with np.errstate(over="ignore"):
        root = root if np.isfinite(root * root) else np.nextafter(root, dtype(0))
        above = np.nextafter(root, dtype(INF))
        assert np.isfinite(root * root)
        assert np.isinf(above * above)
    # A number of a tensor is the square of its norm in float64, whatever its dtype.
    number = "scalar" in RULES[rule]["states"].values()
    squares = rule in SQUARING or (number and dtype == np.float64)
    for value, refused in ((root, False), (above, squares), (largest, squares), (INF, True)):
        for sign in (1, -1):
            g = np.array([0.0, sign * value], dtype)
            w = np.ones(2, dtype)
            info = engine(rule, w, HYPER[rule], nonfinite="skip").step(g)
            assert info.skipped == refused
            assert info.nonfinite == ({"params": (1, 1)} if refused else {})
            assert np.array_equal(w, np.ones(2)) == refused or rule == "lion" or value == root


def test_gradients_are_judged_as_they_come_before_any_clipping():
    w = np.ones(2)
    info = rv.SGD(w, lr=0.1, clip_value=1.0, clip_norm=1.0, nonfinite="skip").step(np.array([INF, 0.0]))
    assert info.skipped
    assert_same_bits(w, np.ones(2))


def test_a_parameter_without_a_gradient_is_never_found_not_finite():
    params = [np.ones(2), np.full(2, NAN)]
    opt = rv.SGD(params, lr=0.1, nonfinite="skip")
    opt.step([np.ones(2), np.full(2, NAN)])
    info = opt.step([np.ones(2), None])
    assert (info.skipped, info.nonfinite) == (False, {})


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_clips_gradients_of_every_size_alike(gpu_device, rule, dtype):
    w, gradients = numbers(70, dtype), [numbers(70, dtype, k + 1) for k in range(3)]

    def trained(bind, put, power):
        p = put(w.copy())
        made = bind(rule, p, HYPER[rule], clip_norm=1.0)
        for g in gradients:
            made.step(put(np.ldexp(g, power)))
        return [rv.to_host(x) for x in (p, *made.states[0])]

    # What reaches the rule is the same, whatever power of two the gradients come with.
    expected = trained(engine, np.array, 0)
    for power in [510, 600, 1010, 1020] if dtype == np.float64 else [100, 124]:
        for bind, put in [(engine, np.array), (partial(device_engine, gpu_device), gpu_device.xp.asarray)]:
            for got, right in zip(trained(bind, put, power), expected, strict=True):
                assert_same_bits(got, right, power)


# The norm of each array.


@every_dtype
@pytest.mark.parametrize("layout", ["contiguous", *LAYOUTS])
def test_the_norm_of_each_array_is_its_global_norm_alone(gpu, dtype, layout):
    lay = LAYOUTS.get(layout, lambda x: x)
    tree = {
        "a": lay(numbers((21, 17, 33), dtype)),
        "b": [None, numbers(5, dtype, 1), numbers(0, dtype)],
        "c": np.ones(()),
    }
    norms = rv.tensor_norms(tree)
    assert list(norms) == ["a", "b.1", "b.2", "c"]
    leaves = rv.trees.leaves(tree)
    for name, norm in norms.items():
        assert_same_bits(norm, np.float64(rv.global_norm(leaves[name])), name)
    if dtype != ml_dtypes.bfloat16:
        there = rv.tensor_norms(rv.trees.map(lambda x: None if x is None else gpu.asarray(x), tree))
        assert {name: norm.shape for name, norm in there.items()} == dict.fromkeys(norms, ())
        assert {name: float(norm) for name, norm in there.items()} == norms
    assert rv.tensor_norms({}) == {}
