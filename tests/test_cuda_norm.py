"""Batch norm and layer norm on a device give the bits of the CPU.

The device is this machine's processor, which runs the same kernels (tests/cuda_on_cpu), or the GPU with RAVINE_GPU=1.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ravine import _core
from ravine.backends import cuda
from ravine.cuda import norm
from tests.conftest import assert_same_bits
from tests.cuda_on_cpu import HostDevice

DTYPES = [np.float32, np.float64]
#: shape, axis, launches of a forward in training and of a backward. Both layouts; around the lanes (64 and 8), the
#: tree's blocks (4096), a block of threads (32768), the columns of one (32).
SHAPES = [
    ((2, 1), 1, 3, 2),
    ((9, 5), 1, 3, 2),
    ((130, 17), -1, 3, 2),
    ((65, 33), 1, 3, 2),
    ((7, 4), 1, 3, 2),
    ((13, 70), 1, 3, 2),
    ((4096, 3), 1, 3, 2),
    ((4097, 2), 1, 3, 2),
    ((8200, 6), 1, 3, 2),
    ((4104, 40), 1, 3, 2),
    ((33000, 1), 1, 3, 2),
    ((131073, 1), 1, 3, 2),
    ((2, 5, 6, 9), -1, 3, 2),
    ((2, 3, 1), 1, 1, 1),
    ((3, 2, 7), 1, 1, 1),
    ((70, 3, 2), 1, 1, 1),
    ((2, 16, 7, 7), 1, 1, 1),
    ((5, 4, 64), 1, 1, 1),
    ((4, 5, 6), 0, 1, 1),
    ((2, 3, 300), 1, 1, 1),
    ((3, 7, 11, 13), 2, 1, 1),
    ((1, 9, 63), 1, 1, 1),
    ((3, 2, 65), 1, 1, 1),
    ((2, 1, 4095), 1, 1, 1),
    ((1, 2, 4096), 1, 1, 1),
    ((1, 3, 4097), 1, 1, 1),
    ((100, 2, 100), 1, 1, 1),
    ((3, 5, 4096), 1, 1, 1),
    ((85, 1, 241), 1, 1, 1),
    ((2, 1, 16384), 1, 1, 1),
    ((1, 1, 32769), 1, 3, 2),
    ((3, 2, 11001), 1, 3, 2),
    ((700, 3, 49), 1, 3, 2),
    ((11000, 2, 3), 1, 3, 2),
    ((2, 2, 35000), 1, 3, 2),
    ((33, 1, 4096), 1, 3, 2),
]
#: shape, axes, launches of a forward and of a backward with an α per unit.
LAYERS = [
    ((1, 1), 1, 1, 2),
    ((3, 5), 1, 1, 2),
    ((7, 64), 1, 1, 2),
    ((4, 3, 5), 2, 1, 2),
    ((2, 3, 4, 5), 3, 1, 2),
    ((6, 130), 1, 1, 2),
    ((20, 9, 2), 1, 1, 2),
    ((5,), 1, 1, 2),
    ((4100, 3), 1, 1, 2),
    ((9, 1023), 1, 1, 2),
    ((2, 4096), 1, 1, 2),
    ((3, 4097), 1, 1, 2),
    ((2, 3, 64, 100), 2, 1, 2),
    ((1, 32768), 1, 1, 2),
    ((2, 32769), 1, 3, 3),
    ((3, 200, 174), 2, 3, 3),
]


class Side:
    """The same arrays on the CPU and on a device, and what was done to them there."""

    def __init__(self, seed: int, shift: int = 0) -> None:
        self.device, self.shift, self.pairs = DEVICE, shift, []
        if not GPU:
            self.device.seed = seed

    def both(self, host):
        """Give this array, and its copy on the device, so many elements behind an aligned address."""
        if host is None:
            return None, None
        base = self.device.xp.empty(host.size + self.shift, host.dtype)
        copy = base[self.shift :].reshape(host.shape)
        copy.set(host)
        self.pairs.append((host, copy))
        return host, copy

    def strided(self, host):
        """As `both`, every third element, backwards."""
        if host is None:
            return None, None
        base = self.device.xp.empty(3 * host.size, host.dtype)
        copy = base[::-3].reshape(host.shape) if host.size else base
        copy[...] = self.device.xp.asarray(host)
        self.pairs.append((host, copy))
        return host, copy

    def check(self, *results) -> None:
        for i, (host, copy) in enumerate([*self.pairs, *results]):
            assert_same_bits(copy.get(), host, f"array {i}")


GPU = bool(os.environ.get("RAVINE_GPU"))
DEVICE = cuda.backend(0).device if GPU else HostDevice(sanitize=bool(os.environ.get("RAVINE_SANITIZE")))


def random(shape, dtype, seed=0, mean=0.0):
    return (np.random.default_rng(seed).standard_normal(shape) + mean).astype(dtype)


def launches(run):
    """Give what the function returns, and how many launches it took; a GPU does not tell."""
    before = 0 if GPU else len(DEVICE.launches)
    result = run()
    return result, None if GPU else len(DEVICE.launches) - before


def launched(got, *expected):
    assert GPU or got == expected


def batch(
    shape,
    axis,
    dtype,
    seed=0,
    *,
    training=True,
    affine=True,
    running=True,
    shift=0,
    strided=False,
    relu=False,
    **options,
):
    """Run batch norm forward and backward on both sides, and compare everything; return the numbers of launches."""
    side, axis, n = Side(seed, shift), axis % len(shape), shape[axis]
    vector = side.strided if strided else side.both
    x = side.both(options.get("x", random(shape, dtype, 1, 0.5)))
    dy = side.both(options.get("dy", random(shape, dtype, 2)))
    weight, bias = (vector(random(n, dtype, i) if affine else None) for i in (3, 4))
    stats = [vector(value if running else None) for value in (random(n, dtype, 5), abs(random(n, dtype, 6)))]
    y, dx = (side.both(np.full(shape, 7, dtype)) for _ in range(2))
    dweight, dbias = (vector(np.full(n, 7, dtype)) for _ in range(2))
    relu = options.get("relu", False)

    def forward(i, function, *first):
        small = (weight[i], bias[i], stats[0][i], stats[1][i])
        return function(*first, x[i], axis, *small, training, 0.1, options.get("eps", 1e-5), y[i], relu)

    def backward(i, saved, function, *first):
        gradients = (dx[i], dweight[i], dbias[i], relu, bias[i] if relu else None)
        return function(*first, dy[i], x[i], axis, weight[i], *saved, training, *gradients)

    saved = forward(0, _core.batch_norm)
    got, forwards = launches(lambda: forward(1, norm.batch_norm, DEVICE))
    backward(0, saved, _core.batch_norm_backward)
    _, backwards = launches(lambda: backward(1, got, norm.batch_norm_backward, DEVICE))
    side.check(*zip(saved, got, strict=True))
    return forwards, backwards


def layer(shape, axes, dtype, seed=0, *, weight="units", bias="units", shift=0, strided=False, **options):
    """Run layer norm forward and backward on both sides, and compare everything; return the numbers of launches."""
    side, units = Side(seed, shift), shape[-axes:]
    vector = side.strided if strided else side.both
    sizes = {"units": units, "one": (), "row": (1, 1), "none": None}
    x = side.both(options.get("x", random(shape, dtype, 1, 0.5)))
    dy = side.both(options.get("dy", random(shape, dtype, 2)))
    alpha, beta = (
        vector(None if sizes[size] is None else np.asarray(random(sizes[size], dtype, i)))
        for i, size in ((3, weight), (4, bias))
    )
    y, dx = (side.both(np.full(shape, 7, dtype)) for _ in range(2))
    dweight, dbias = (
        vector(np.full(units if sizes[size] is None else sizes[size], 7, dtype)) for size in (weight, bias)
    )

    def forward(i, function, *first):
        return function(*first, x[i], axes, alpha[i], beta[i], options.get("eps", 1e-5), y[i])

    def backward(i, saved, function, *first):
        return function(*first, dy[i], x[i], axes, alpha[i], *saved, dx[i], dweight[i], dbias[i])

    saved = forward(0, _core.layer_norm)
    got, forwards = launches(lambda: forward(1, norm.layer_norm, DEVICE))
    backward(0, saved, _core.layer_norm_backward)
    _, backwards = launches(lambda: backward(1, got, norm.layer_norm_backward, DEVICE))
    side.check(*zip(saved, got, strict=True))
    return forwards, backwards


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis", "forwards", "backwards"), SHAPES)
def test_batch_norm_has_the_bits_of_the_cpu(shape, axis, forwards, backwards, dtype):
    launched(batch(shape, axis, dtype, 1), forwards, backwards)
    launched(batch(shape, axis, dtype, 2, training=False), 2, backwards)
    launched(batch(shape, axis, dtype, 3, relu=True), forwards, backwards)
    launched(batch(shape, axis, dtype, 4, relu=True, training=False, affine=False), 2, backwards)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axes", "forwards", "backwards"), LAYERS)
def test_layer_norm_has_the_bits_of_the_cpu(shape, axes, forwards, backwards, dtype):
    launched(layer(shape, axes, dtype, 1), forwards, backwards)
    launched(layer(shape, axes, dtype, 2, weight="none", bias="none"), forwards, backwards)
    shared = shape[-axes:] != (1,)
    launched(layer(shape, axes, dtype, 3, weight="one", bias="one"), forwards, backwards + shared)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shift", [1, 2, 3])
@pytest.mark.parametrize(("shape", "axis"), [((9, 6), 1), ((300, 7), 1), ((5, 3, 50), 1), ((2, 3, 20000), 1)])
def test_any_address_gives_the_same_bits(shape, axis, shift, dtype):
    for training in (True, False):
        batch(shape, axis, dtype, 1, training=training, shift=shift)
    for axes in (1, 2):
        layer(shape, axes, dtype, 1, shift=shift)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), [((40, 6), 1), ((5, 6, 50), 1), ((2, 3, 20000), 1)])
@pytest.mark.parametrize("options", [{"affine": False}, {"running": False}, {"strided": True}, {"eps": 0.0}])
def test_absent_and_strided_vectors_give_the_same_bits(shape, axis, options, dtype):
    batch(shape, axis, dtype, 1, **options)
    if options.get("running", True):
        batch(shape, axis, dtype, 1, training=False, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axes"), [((9, 6), 1), ((9, 6), 2), ((5, 3, 50), 2), ((2, 3, 12000), 2)])
def test_each_kind_of_weight_gives_the_same_bits(shape, axes, dtype):
    kinds = ["units", "one", "row", "none"]
    for weight, bias in [(w, b) for w in kinds for b in kinds]:
        numbers = layer(shape, axes, dtype, 1, weight=weight, bias=bias)
        long = 2 * (np.prod(shape[-axes:]) > 32768)
        shared = weight in ("one", "row") or bias in ("one", "row")
        launched(numbers, 1 + long, 2 + (long > 0) + shared)
    layer(shape, axes, dtype, 1, strided=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_that_no_step_leads_through_give_the_same_bits(dtype):
    shape, side = (7, 5, 6), Side(1)
    x, dy, y, dx = (side.both(random(shape, dtype, seed)) for seed in range(4))

    def transposed(seed):
        host, copy = side.both(random((6, 5), dtype, seed))
        return host.T, copy.T

    weight, bias, dweight, dbias = (transposed(seed) for seed in range(4, 8))
    saved = [
        function(*first, x[i], 2, weight[i], bias[i], 1e-5, y[i])
        for i, (function, *first) in enumerate([(_core.layer_norm,), (norm.layer_norm, DEVICE)])
    ]
    # The saved statistics, too, may be strided.
    spread = DEVICE.xp.empty((2, 7, 2))
    for k in range(2):
        spread[k, :, 0] = saved[1][k]
    _core.layer_norm_backward(dy[0], x[0], 2, weight[0], *saved[0], dx[0], dweight[0], dbias[0])
    norm.layer_norm_backward(
        DEVICE, dy[1], x[1], 2, weight[1], spread[0, :, 0], spread[1, :, 0], dx[1], dweight[1], dbias[1]
    )
    side.check(*zip(*saved, strict=True))


def special(shape, dtype, kind):
    info, x = np.finfo(dtype), random(shape, dtype, 1)
    flat = x.reshape(-1)
    match kind:
        case "nan":
            flat[::97] = np.nan
        case "inf":
            flat[5::131] = np.inf
            flat[7::211] = -np.inf
        case "subnormal":
            flat *= info.smallest_subnormal * 100
        case "huge mean":
            flat += dtype(1e6)
        case "huge":
            flat *= info.max / 8
        case "constant":
            flat[:] = 0.1
        case "minus zero":
            flat[:] = -0.0
    return x


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["nan", "inf", "subnormal", "huge mean", "huge", "constant", "minus zero"])
@pytest.mark.filterwarnings("ignore:.*(overflow|invalid value):RuntimeWarning")
def test_special_numbers_give_the_same_bits(kind, dtype):
    for shape, axis in [((40, 6), 1), ((6, 5, 50), 1), ((2, 3, 17000), 1)]:
        x, dy = special(shape, dtype, kind), random(shape, dtype, 2)
        for eps in (1e-5, 0.0):
            batch(shape, axis, dtype, 1, x=x, dy=dy, eps=eps)
            batch(shape, axis, dtype, 1, x=dy, dy=x, eps=eps, training=False)
            layer(shape, 1, dtype, 1, x=x, dy=dy, eps=eps)
            layer(shape, 1, dtype, 1, x=x, dy=dy, eps=eps, bias="none")
            layer(shape, 2, dtype, 1, x=dy, dy=x, eps=eps, weight="none", bias="none")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (0, 3, 5), (2, 3, 0), (2, 0, 5), (0, 2, 0)])
def test_nothing_to_normalise_gives_what_the_cpu_gives(shape, dtype):
    batch(shape, 1, dtype, 1, training=False)
    if shape[1] == 0:
        batch(shape, 1, dtype, 1)
    for axes in range(1, len(shape) + 1):
        layer(shape, axes, dtype, 1)
        layer(shape, axes, dtype, 1, weight="one", bias="one")


@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_of_an_empty_batch_have_zero_gradients_in_training(dtype):
    side = Side(1)
    for shape in [(0, 3), (0, 3, 5), (2, 3, 0)]:
        x, dy, dx = (side.both(np.empty(shape, dtype)) for _ in range(3))
        mean, inv_std = side.both(random(3, np.float64, 1)), side.both(random(3, np.float64, 2))
        dweight, dbias = side.both(random(3, dtype, 3)), side.both(random(3, dtype, 4))
        arguments = [(dy[i], x[i], 1, None, mean[i], inv_std[i], True, dx[i], dweight[i], dbias[i]) for i in range(2)]
        _core.batch_norm_backward(*arguments[0])
        norm.batch_norm_backward(DEVICE, *arguments[1])
    side.check()


def test_work_space_is_used_again_and_the_tickets_are_zero_after_every_call():
    device = DEVICE
    norm._spaces.pop(device, None)
    xp, x = device.xp, random((3, 2, 50000), np.float32)
    copy = xp.asarray(x)
    pointers = set()
    first = None
    for _ in range(3):
        y, dx = xp.empty(x.shape, x.dtype), xp.empty(x.shape, x.dtype)
        statistics = xp.empty(2, np.float64), xp.empty(2, np.float64)
        given = norm.batch_norm(device, copy, 1, None, None, None, None, True, 0.1, 1e-5, y, statistics=statistics)
        assert given[0] is statistics[0]
        assert given[1] is statistics[1]
        gradients = xp.empty(2, x.dtype), xp.empty(2, x.dtype)
        norm.batch_norm_backward(device, y, copy, 1, None, *given, True, dx, *gradients)
        space = norm._spaces[device]
        assert not space._arrays["tickets"][-1].get().any()
        pointers.add(tuple((name, arrays[-1].data.ptr) for name, arrays in space._arrays.items()))
        results = [array.get().tobytes() for array in (y, dx, *given, *gradients)]
        first = first or results
        assert results == first
    assert len(pointers) == 1
    # More of it: what was there stays, for graphs that were captured with it.
    large = xp.zeros((1, 700, 32769), np.float32)
    norm.batch_norm(device, large, 1, None, None, None, None, True, 0.1, 1e-5, xp.empty(large.shape, large.dtype))
    assert len(space._arrays["tickets"]) == 2
    assert not space._arrays["tickets"][-1].get().any()


@pytest.mark.parametrize("shape", [(3, 2, 20000), (9000, 3)])
def test_no_order_of_the_threads_changes_a_bit(shape):
    for seed in range(1, 200, 20):
        batch(shape, 1, np.float32, seed)
        layer(shape, 2, np.float32, seed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shift", [0, 1])
def test_awkward_sizes_sanitized(shift, dtype):
    """Every kernel, with ends that fit no width: what `tests/test_cuda_sanitized.py` runs under sanitizers."""
    for shape, axis in [
        ((5, 3), 1),
        ((131, 33), 1),
        ((33001, 5), 1),
        ((3, 2, 7), 1),
        ((2, 3, 66), 1),
        ((1, 2, 33001), 1),
    ]:
        batch(shape, axis, dtype, 1, shift=shift)
        batch(shape, axis, dtype, 2, training=False, shift=shift)
    for shape in [(3, 5), (9, 66), (1, 4099), (1, 32770)]:
        layer(shape, 1, dtype, 1, shift=shift)
        layer(shape, 1, dtype, 2, weight="one", bias="none", shift=shift)


@settings(max_examples=150, deadline=None)
@given(
    outer=st.integers(1, 6),
    channels=st.integers(1, 40),
    inner=st.one_of(st.integers(1, 100), st.integers(1, 3000)),
    last=st.booleans(),
    training=st.booleans(),
    double=st.booleans(),
    shift=st.integers(0, 4),
    affine=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_batch_norm_has_the_bits_of_the_cpu_for_any_shape(
    outer, channels, inner, last, training, double, shift, affine, seed
):
    dtype = np.float64 if double else np.float32
    shape, axis = ((outer, inner, channels), 2) if last else ((outer, channels, inner), 1)
    if outer * inner == 1:
        shape = (2, *shape[1:])
    x = np.exp(4 * random(shape, np.float64, seed)).astype(dtype)
    batch(shape, axis, dtype, seed, x=x, training=training, affine=affine, shift=shift)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 60),
    units=st.one_of(st.integers(1, 200), st.integers(1, 5000)),
    weight=st.sampled_from(["units", "one", "row", "none"]),
    bias=st.sampled_from(["units", "one", "row", "none"]),
    double=st.booleans(),
    shift=st.integers(0, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_layer_norm_has_the_bits_of_the_cpu_for_any_shape(rows, units, weight, bias, double, shift, seed):
    dtype = np.float64 if double else np.float32
    x = np.exp(4 * random((rows, units), np.float64, seed)).astype(dtype)
    layer((rows, units), 1, dtype, seed, x=x, weight=weight, bias=bias, shift=shift)
