"""Clipping unit by unit: equation 3 of Brock et al. 2021, with the bits of its definition on every backend."""

import copy
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import ravine as rv
from tests.conftest import assert_same_bits
from tests.reference.tree import Norm, norm_tensors
from tests.specification import compute_dtype, quotient_or_none

DTYPES = [np.dtype(d) for d in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)]

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def numbers(shape, dtype=np.float64, seed=0):
    return np.asarray(np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def specified(w, g, clipping=0.01, eps=1e-3, axis=-1):
    """Give the clipped gradient, unit by unit and rounding by rounding."""
    g = np.array(g)  # in C order
    rows = [(w, g)] if w.ndim < 2 else list(zip(np.moveaxis(w, axis, 0), np.moveaxis(g, axis, 0), strict=True))
    for of_w, of_g in rows:
        size, norm = norm_tensors([of_w]), norm_tensors([of_g])
        with np.errstate(all="ignore"):
            limit = Norm(clipping * np.float64(size if size != size or size > eps else eps))
            if math.inf == size != size.root:  # of finite numbers
                limit = Norm(clipping * np.float64(size.root), size.power)
            clip = quotient_or_none(limit, norm)
            if clip is not None:
                of_g[...] = clip.applied(of_g.astype(compute_dtype(g.dtype))).astype(g.dtype)
    return g


# What it is.


def test_a_unit_is_clipped_to_a_part_of_its_parameters_and_others_are_left():
    w, g = numbers((40, 30)), numbers((40, 30), seed=1)
    g[:, ::3] *= 1e-3
    before = g.copy()
    assert rv.adaptive_clip_(w, g, 0.02) is None
    size, norm = np.linalg.norm(w, axis=0), np.linalg.norm(before, axis=0)
    np.testing.assert_allclose(g, before * np.minimum(1, 0.02 * size / norm), rtol=1e-13)
    assert_same_bits(g[:, ::3], before[:, ::3])
    np.testing.assert_allclose(np.linalg.norm(g, axis=0)[1], 0.02 * size[1], rtol=1e-13)


def test_the_axis_says_what_a_unit_is():
    w, g = numbers((4, 5, 6, 7)), numbers((4, 5, 6, 7), seed=1)
    for axis in range(-4, 4):
        clipped = g.copy()
        rv.adaptive_clip_(w, clipped, 0.1, axis=axis)
        others = tuple(a for a in range(4) if a != axis % 4)
        size, norm = (np.sqrt(np.sum(np.square(x), others, keepdims=True)) for x in (w, g))
        np.testing.assert_allclose(clipped, g * np.minimum(1, 0.1 * size / norm), rtol=1e-13)


@pytest.mark.parametrize("shape", [(), (1,), (9,), (9000,)])
def test_a_vector_and_a_number_are_one_unit(shape):
    w, g = numbers(shape), numbers(shape, seed=1)
    before = g.copy()
    rv.adaptive_clip_(w, g, 0.1, axis=5)  # which they do not have, and do not need
    np.testing.assert_allclose(g, before * (0.1 * np.linalg.norm(w) / np.linalg.norm(before)), rtol=1e-13)


def test_parameters_that_are_0_count_with_eps():
    g = np.array([[3.0, 1e-6], [4.0, 0.0]])
    rv.adaptive_clip_(np.zeros((2, 2)), g, 0.5, eps=0.1)
    np.testing.assert_allclose(g, [[0.03, 1e-6], [0.04, 0.0]], rtol=1e-15)


def test_nestings_are_clipped_by_name_and_none_is_left_out():
    params = {"hidden": {"w": numbers((6, 5)), "b": numbers(5, seed=1)}, "out": [numbers((5, 2), np.float32, 2)]}
    grads = rv.trees.map(lambda w: numbers(w.shape, w.dtype, 9), params)
    grads["hidden"]["b"] = None
    expected = specified(params["hidden"]["w"], grads["hidden"]["w"]), specified(params["out"][0], grads["out"][0])
    kept = copy.deepcopy(params)
    rv.adaptive_clip_(params, grads)
    assert_same_bits(grads["hidden"]["w"], expected[0])
    assert_same_bits(grads["out"][0], expected[1])
    assert_same_bits(params["hidden"]["w"], kept["hidden"]["w"])
    rv.adaptive_clip_({}, {})
    rv.adaptive_clip_([params["out"][0]], [None])


def test_what_is_not_finite_stays_in_its_unit():
    w, g = np.ones((2, 4)), np.full((2, 4), 5.0)
    g[0, 1], g[0, 2], w[0, 3] = np.nan, np.inf, np.nan
    rv.adaptive_clip_(w, g, 0.1)
    limit = 0.1 * math.sqrt(2) / math.sqrt(50) * 5
    np.testing.assert_allclose(g, [[limit, np.nan, np.nan, np.nan], [limit, np.nan, 0.0, np.nan]], rtol=1e-14)


@pytest.mark.parametrize("of_w", [-900, -600, 0, 600, 960])
@pytest.mark.parametrize("of_g", [-850, -550, 50, 650, 1010])
@pytest.mark.parametrize("shape", [(9,), (5, 7), (4100, 3), (2, 4100)])
def test_units_of_every_size_are_clipped_to_a_part_of_their_parameters(gpu, shape, of_w, of_g):
    w, g = np.round(numbers(shape) * 64), np.round(numbers(shape, seed=1) * 64)
    for axis in (0, -1):
        expected = g.copy()
        rv.adaptive_clip_(np.ldexp(w, -40), expected, 0.5, eps=2.0**-80, axis=axis)
        # Where the gradient is larger, what is left of it depends on the parameter alone.
        expected = np.ldexp(expected, of_w + 40) if of_w < of_g else np.ldexp(g, of_g)
        for put in (np.array, np.asfortranarray, gpu.asarray):
            got = put(np.ldexp(g, of_g))
            rv.adaptive_clip_(put(np.ldexp(w, of_w)), got, 0.5, eps=np.ldexp(1.0, of_w - 40), axis=axis)
            assert_same_bits(np.ascontiguousarray(rv.to_host(got)), expected)


def test_units_whose_norms_are_beyond_all_numbers_are_clipped(gpu):
    largest = np.finfo(float).max
    for put in (np.asarray, gpu.asarray):
        for shape in [(4,), (4, 2)]:
            w, g = put(np.full(shape, largest)), put(np.full(shape, largest))
            rv.adaptive_clip_(w, g, 0.25)
            np.testing.assert_allclose(rv.to_host(g), np.full(shape, largest / 4), rtol=1e-15)
            rv.adaptive_clip_(w, g, 1.0)
            np.testing.assert_allclose(rv.to_host(g), np.full(shape, largest / 4), rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_numbers_of_every_size_equal_the_definition_on_every_backend(gpu, dtype, data):
    powers = st.integers(-1100, 1023) if dtype == np.float64 else st.integers(-149, 127)
    elements = st.builds(math.ldexp, st.floats(-1, 1), powers)
    shape = data.draw(hnp.array_shapes(max_dims=2, max_side=5))
    w, g = (
        np.array(data.draw(st.lists(elements, min_size=math.prod(shape), max_size=math.prod(shape)))).reshape(shape)
        for _ in range(2)
    )
    w, g = w.astype(dtype), g.astype(dtype)
    clipping, eps = (math.ldexp(1.3, data.draw(st.integers(-1000, 1000))) for _ in range(2))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    expected = specified(w, g, clipping, eps, axis)
    there = gpu.asarray(g)
    rv.adaptive_clip_(gpu.asarray(w), there, clipping, eps, axis=axis)
    rv.adaptive_clip_(w, g, clipping, eps, axis=axis)
    assert_same_bits(g, expected)
    assert_same_bits(there.get(), expected)


# Bits.

LAYOUTS = {
    "contiguous": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "reversed": lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
    "gaps": lambda x: np.repeat(np.repeat(x, 2, 0), 3, 1)[::2, ::3],
}


@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [0, 1])
def test_it_equals_its_definition_for_any_threads_and_strides(dtype, layout, axis):
    for shape in [(5, 7), (4100, 33), (2, 5000), (130, 65), (0, 3), (3, 0)]:
        w, g = numbers(shape, dtype), numbers(shape, dtype, 1)
        expected = specified(w, g, 0.3, axis=axis)
        for threads, of_parameter in [(1, layout), (3, layout), (2, "Fortran")]:
            rv.set_num_threads(threads)
            got = LAYOUTS[layout](g.copy())
            rv.adaptive_clip_(LAYOUTS[of_parameter](w), got, 0.3, axis=axis)
            assert_same_bits(got, expected, shape)


def test_gradients_may_be_of_another_width_than_their_parameters():
    for of_w in DTYPES:
        for of_g in DTYPES:
            w, g = numbers((30, 20), of_w), numbers((30, 20), of_g, 1)
            expected = specified(w, g)
            rv.adaptive_clip_(w, g)
            assert_same_bits(g, expected, f"{of_w} {of_g}")


ELEMENTS = st.floats(width=32) | st.sampled_from([0.0, -0.0, 1e-40, np.inf, np.nan, 3e38])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_numbers_equal_the_definition(data):
    shape = data.draw(hnp.array_shapes(max_dims=3, min_side=0, max_side=6))
    w, g = (data.draw(hnp.arrays(np.float32, shape, elements=ELEMENTS)) for _ in range(2))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    clipping, eps = data.draw(st.floats(1e-30, 1e30)), data.draw(st.floats(1e-30, 1e30))
    expected = specified(w, g, clipping, eps, axis)
    rv.adaptive_clip_(w, g, clipping, eps, axis=axis)
    assert_same_bits(g, expected)


def test_another_library_s_rounding_changes_nothing():
    w, g = numbers((50, 40), np.float32) * np.float32(1e-20), numbers((50, 40), np.float32, 1) * np.float32(1e-30)
    expected = specified(w, g, 1e-12, 1e-30)
    rv._core.disturb_environment(True)
    rv.adaptive_clip_(w, g, 1e-12, 1e-30)
    rv._core.disturb_environment(False)
    assert_same_bits(g, expected)


# What is refused.


def wrong_value(name, value):
    return lambda w, g: rv.adaptive_clip_(w, g, **{name: value})


WRONG = {
    **{
        f"clipping={v}": (wrong_value("clipping", v), "clipping: expected a finite number > 0") for v in (0, -1, np.nan)
    },
    **{f"eps={v}": (wrong_value("eps", v), "eps: expected a finite number > 0") for v in (0, -1, np.inf)},
    "axis": (
        lambda w, g: rv.adaptive_clip_(w, g, axis=2),
        r"axis: expected one of -2 to 1 for params of shape \(3, 4\)",
    ),
    "nesting": (lambda w, g: rv.adaptive_clip_({"a": w}, {"b": g}), r"missing \['a'\], unknown \['b'\]"),
    "shape": (
        lambda w, g: rv.adaptive_clip_({"a": w}, {"a": g.T}),
        r"grads\['a'\]: expected shape \(3, 4\) like its parameter, got \(4, 3\)",
    ),
    "same memory": (lambda w, g: rv.adaptive_clip_([g], [g]), r"grads\['0'\]: shares memory with params\['0'\]"),
    "twice": (lambda w, g: rv.adaptive_clip_([w, w], [g, g]), r"grads\['0'\] and grads\['1'\] share memory"),
    "broadcast": (
        lambda w, g: rv.adaptive_clip_(w, np.broadcast_to(g[:1], g.shape)),
        "grads: .*(read-only|share memory)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_and_nothing_is_changed(gpu, case):
    call, message = WRONG[case]
    for put in (np.asarray, gpu.asarray):
        if case == "broadcast" and put is not np.asarray:
            continue  # the stand-in has no views of that kind
        w, g = put(numbers((3, 4))), put(numbers((3, 4), seed=1))
        with pytest.raises(ValueError, match=message):
            call(w, g)
        assert_same_bits(rv.to_host(g), numbers((3, 4), seed=1))


def test_a_leaf_that_is_no_array_is_named():
    with pytest.raises(TypeError, match=r"grads\['b'\]"):
        rv.adaptive_clip_({"b": np.ones(2)}, {"b": [1.0, 2.0][0]})


# On a device.


@every_dtype
@pytest.mark.parametrize("axis", [0, -1])
def test_a_device_gives_the_same_bits(gpu, dtype, axis):
    shapes = [(5, 7), (), (3, 0), (9000,), (8200, 3), (4, 3, 5, 6), (130, 9)]  # few units: a block of threads each
    shapes = [shape[::-1] if axis == 0 else shape for shape in shapes]
    params = [numbers(shape, dtype, i) for i, shape in enumerate(shapes)]
    grads = [numbers(shape, DTYPES[i % 4] if i < 3 else dtype, 50 + i) for i, shape in enumerate(shapes)]
    for lay in (lambda x: x, lambda x: gpu.ascontiguousarray(x.T).T if x.ndim > 1 else x):
        here, there = copy.deepcopy(grads), [lay(gpu.asarray(g)) for g in grads]
        rv.adaptive_clip_(params, here, 0.3, axis=axis)
        rv.adaptive_clip_([lay(gpu.asarray(w)) for w in params], there, 0.3, axis=axis)
        for ours, theirs in zip(there, here, strict=True):
            assert_same_bits(ours.get(), theirs)


def test_a_device_keeps_what_is_not_finite_in_its_unit(gpu):
    w, g = np.ones((2, 4)), np.full((2, 4), 5.0)
    g[0, 1], g[0, 2], w[0, 3] = np.nan, np.inf, np.nan
    there = gpu.asarray(g)
    rv.adaptive_clip_(gpu.asarray(w), there, 0.1)
    rv.adaptive_clip_(w, g, 0.1)
    assert_same_bits(there.get(), g)
