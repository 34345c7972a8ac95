"""Normalisation, `to_device` and the example on CuPy arrays: what NumPy's give, bit for bit, and the same refusals."""

import importlib.util
import itertools
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

import ravine as rv
from ravine.backends import cuda
from tests.conftest import assert_same_bits
from tests.cuda_on_cpu import HostDevice

F32 = np.float32
REAL_GPU = bool(os.environ.get("RAVINE_GPU"))
#: shape, axis: channels inside and last, more than one segment, 0.
SHAPES = [((9, 5), 1), ((3, 4, 7), 1), ((2, 3, 4, 5), -1), ((4, 5, 6), 0), ((2, 3, 8, 9), 1)]


def random(shape, dtype=F32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def same(gpu, device, host, what=""):
    """Assert the same nesting of arrays, those of ``device`` CuPy's, with the same bits."""
    device, host = rv.trees.leaves(device), rv.trees.leaves(host)
    assert device.keys() == host.keys()
    for name, array in host.items():
        assert isinstance(device[name], gpu.ndarray), f"{what} {name}"
        assert_same_bits(device[name].get(), array, f"{what} {name}")


def padded(xp, array):
    """Give the array as every other element of every axis of a larger one."""
    wide = xp.zeros([2 * n for n in array.shape], array.dtype)
    view = wide[(slice(None, None, 2),) * array.ndim]
    view[...] = array
    return view


# ---------------------------------------------------------------------------------------------------------------------
# The same bits


LAYOUTS = {
    "contiguous": lambda xp, a: a,
    "strided": padded,
    "fortran": lambda xp, a: xp.asfortranarray(a),
    "reversed": lambda xp, a: xp.ascontiguousarray(a[::-1])[::-1],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_batch_norm_gives_the_bits_of_numpy(gpu, shape, axis, dtype, layout):
    x, dy, channels = random(shape, dtype, 1), random(shape, dtype, 2), shape[axis]
    vectors = [
        random(channels, dtype, 3),
        random(channels, dtype, 4),
        np.zeros(channels, dtype),
        np.ones(channels, dtype),
    ]

    def everything(xp, x, dy, weight, bias, *running):
        results = []
        for training, relu in itertools.product((True, False), repeat=2):
            y, saved = rv.batch_norm(x, weight, bias, *running, axis=axis, training=training, relu=relu)
            assert (saved.axis, saved.training, saved.relu) == (axis % len(shape), training, relu)
            results += [y, saved.mean, saved.inv_std, *rv.batch_norm_backward(dy, x, saved, weight)]
        y, saved = rv.batch_norm(x, axis=axis)
        return [*results, *running, y, *rv.batch_norm_backward(dy, x, saved)]

    on_device = [LAYOUTS[layout](gpu, gpu.asarray(array)) for array in (x, dy, *vectors)]
    same(gpu, everything(gpu, *on_device), everything(np, x, dy, *vectors))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("affine", ["vector", "scalar", "none"])
@pytest.mark.parametrize(("shape", "axes"), [((7, 64), 1), ((4, 3, 5), 2), ((2, 3, 130), 1)])
def test_layer_norm_gives_the_bits_of_numpy(gpu, shape, axes, affine, layout):
    x, dy = random(shape, F32, 1), random(shape, F32, 2)
    units = {"vector": shape[-axes:], "scalar": (1,), "none": None}[affine]
    vectors = [] if units is None else [random(units, F32, 3), random(units, F32, 4)]

    def everything(x, dy, *affine):
        y, saved = rv.layer_norm(x, *affine, axes=axes)
        return [y, saved.mean, saved.inv_std, *rv.layer_norm_backward(dy, x, saved, *affine)]

    on_device = [LAYOUTS[layout](gpu, gpu.asarray(array)) for array in (x, dy, *vectors)]
    same(gpu, everything(*on_device), everything(x, dy, *vectors))


@pytest.mark.parametrize(
    ("forward", "backward"), [(rv.batch_norm, rv.batch_norm_backward), (rv.layer_norm, rv.layer_norm_backward)]
)
def test_results_go_to_out(gpu, forward, backward):
    x, dy = gpu.asarray(random((4, 3, 5), F32, 1)), gpu.asarray(random((4, 3, 5), F32, 2))
    out, dx = gpu.empty_like(x), gpu.empty_like(x)
    y, saved = forward(x, out=out)
    assert y is out
    assert_same_bits(out.get(), forward(x)[0].get())
    assert backward(dy, x, saved, out=dx)[0] is dx
    assert_same_bits(dx.get(), backward(dy, x, saved)[0].get())


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0, 3, 5), (4, 3, 0), (4, 0, 5)])
def test_empty_arrays(gpu, shape):
    def everything(xp):
        x, running = xp.zeros(shape, F32), (xp.zeros(shape[1], F32), xp.ones(shape[1], F32))
        y, saved = rv.batch_norm(x, None, None, *running, training=False)
        results = [y, *running, *rv.batch_norm_backward(x, x, saved)]
        y, saved = rv.layer_norm(x)
        return [*results, y, saved.mean, saved.inv_std, *rv.layer_norm_backward(x, x, saved)]

    same(gpu, everything(gpu), everything(np))


# ---------------------------------------------------------------------------------------------------------------------
# The layers


LAYERS = {
    "batch norm": lambda device: rv.BatchNorm(3, device=device),
    "batch norm, channels last": lambda device: rv.BatchNorm(5, axis=-1, momentum=0.3, device=device),
    "batch norm without affine": lambda device: rv.BatchNorm(3, affine=False, device=device),
    "batch norm with relu": lambda device: rv.BatchNorm(3, relu=True, device=device),
    "layer norm": lambda device: rv.LayerNorm((3, 5), device=device),
    "layer norm with scalars": lambda device: rv.LayerNorm(5, scalar=True, device=device),
    "layer norm without affine": lambda device: rv.LayerNorm(5, affine=False, device=device),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_a_layer_gives_the_bits_of_numpys(gpu, name, device):
    layers = LAYERS[name](device), LAYERS[name]("cpu")
    spaces = ([], [])
    for seed in range(3):
        for layer, space, xp in zip(layers, spaces, (gpu, np), strict=True):
            for i, p in enumerate(layer.params.values()):
                p[...] = xp.asarray(random(p.shape, F32, 10 * seed + i))
            x, dy = xp.asarray(random((4, 3, 5), F32, seed)), xp.asarray(random((4, 3, 5), F32, seed + 50))
            space += [layer(x), layer.backward(dy)]
        on_device, host = (
            [*space[-2:], layer.params, layer.grads] for layer, space in zip(layers, spaces, strict=True)
        )
        same(gpu, on_device, host, f"call {seed}")
        if hasattr(layers[0], "buffers"):
            same(gpu, layers[0].buffers, layers[1].buffers, f"call {seed}")
    same(gpu, spaces[0], spaces[1], "results that are held are not written again")
    assert len({id(result) for result in spaces[0]}) == 6
    assert layers[0].grads.keys() == layers[0].params.keys()


@pytest.mark.parametrize("name", [name for name in LAYERS if "without" not in name])
def test_a_layer_makes_no_arrays_once_it_has_seen_the_shape(gpu, name, monkeypatch):
    layer = LAYERS[name]("cuda")
    x, dy = gpu.asarray(random((4, 3, 5), F32, 1)), gpu.asarray(random((4, 3, 5), F32, 2))
    y, dx = layer(x).get(), layer.backward(dy).get()

    def forbidden(*args, **kwargs):
        raise AssertionError("a captured call must make no arrays")

    with monkeypatch.context() as patch:
        for maker in ("empty", "zeros", "ones", "array", "asarray", "ascontiguousarray", "empty_like"):
            patch.setattr(gpu, maker, forbidden)
        again = layer(x), layer.backward(dy)
    assert_same_bits(again[0].get(), y)
    assert_same_bits(again[1].get(), dx)


def test_a_layers_work_space_is_its_own(gpu):
    layer = rv.BatchNorm(3, axis=-1, device="cuda")
    x = gpu.asarray(random((8, 3)))
    once = layer(x)
    kept = once.get()
    assert layer(once) is not once, "an earlier result is the caller's once it comes back"
    assert_same_bits(once.get(), kept)
    dx = layer.backward(x)
    assert layer.backward(dx) is not dx
    wide = layer(gpu.asarray(random((9, 3))))
    assert wide.shape == (9, 3)
    host = rv.LayerNorm(3, affine=False)
    assert isinstance(host(x), gpu.ndarray), "without parameters it has no place of its own"
    assert isinstance(host(x.get()), np.ndarray)


def test_layers_fit_into_a_network_that_learns(gpu):
    rng = gpu.random.default_rng(0)
    net = rv.nn.Sequential(
        rv.nn.Linear(4, 8, rng),
        rv.BatchNorm(8, device="cuda"),
        rv.nn.ReLU(),
        rv.nn.Linear(8, 8, rng),
        rv.LayerNorm(8, device="cuda"),
        rv.nn.Linear(8, 1, rng),
    )
    x = rng.standard_normal((64, 4), dtype=F32)
    t = gpu.sin(x.sum(axis=1, keepdims=True))
    opt = rv.Adam(net.params, lr=0.02)
    losses = []
    for _ in range(60):
        loss, dy = rv.nn.mean_squared_error(net(x), t)
        net.backward(dy)
        opt.step(net.grads)
        losses.append(loss)
    assert losses[-1] < 0.2 * losses[0]


# ---------------------------------------------------------------------------------------------------------------------
# The same refusals, in the same words


def arguments(xp):
    return {
        "x": xp.arange(12, dtype=F32).reshape(4, 3) ** 2,
        "weight": xp.ones(3, F32),
        "bias": xp.ones(3, F32),
        "running_mean": xp.zeros(3, F32),
        "running_var": xp.ones(3, F32),
        "out": xp.zeros((4, 3), F32),
    }


#: What is changed, as a function of the array library and the right arguments.
FORWARD = {
    "x int": (lambda xp, a: {"x": a["x"].astype(np.int64), "out": None}, TypeError, "x: expected float64.*got int64"),
    "x half": (
        lambda xp, a: {"x": a["x"].astype(np.float16), "out": None},
        TypeError,
        r"x: expected float32 or float64, got float16; convert it with x.astype",
    ),
    "one element": (
        lambda xp, a: {"x": a["x"][:1], "out": None},
        ValueError,
        r"x: expected at least 2 elements per channel in training, got 1 \(shape \(1, 3\), axis 1\)",
    ),
    "axis": (
        lambda xp, a: {"axis": 2},
        ValueError,
        r"axis: expected -2 to 1, one of the axes of x, shape \(4, 3\), got 2",
    ),
    "weight longer": (
        lambda xp, a: {"weight": xp.ones(4, F32)},
        ValueError,
        r"weight: expected shape \(3,\), got \(4,\)",
    ),
    "weight one": (lambda xp, a: {"weight": xp.ones(1, F32)}, ValueError, r"weight: expected shape \(3,\), got \(1,\)"),
    "weight float": (
        lambda xp, a: {"weight": 2.0},
        TypeError,
        r"weight: expected a NumPy array, got float; pass np.asarray",
    ),
    "weight list": (lambda xp, a: {"weight": [1.0] * 3}, TypeError, "weight: expected a NumPy array, got list"),
    "bias double": (
        lambda xp, a: {"bias": xp.ones(3)},
        TypeError,
        r"bias: expected float32 like x, got float64; convert it with bias.astype\(np.float32\)",
    ),
    "running double": (
        lambda xp, a: {"running_mean": xp.ones(3)},
        TypeError,
        "running_mean: expected float32 like x, got float64",
    ),
    "no variance": (
        lambda xp, a: {"running_var": None},
        ValueError,
        "running_var: expected an array like running_mean, got None; pass both or neither",
    ),
    "no mean": (
        lambda xp, a: {"running_mean": None},
        ValueError,
        "running_mean: expected an array like running_var, got None",
    ),
    "neither": (
        lambda xp, a: {"running_mean": None, "running_var": None, "training": False},
        ValueError,
        "running_mean, running_var: expected arrays for training=False",
    ),
    "eps": (lambda xp, a: {"eps": -1.0}, ValueError, "eps: expected a finite number ≥ 0, got -1.0"),
    "momentum": (lambda xp, a: {"momentum": 1.5}, ValueError, r"momentum: expected a number in \[0, 1\], got 1.5"),
    "out shape": (
        lambda xp, a: {"out": xp.empty((3, 4), F32)},
        ValueError,
        r"out: expected shape \(4, 3\) like x, got \(3, 4\)",
    ),
    "out double": (lambda xp, a: {"out": xp.empty((4, 3))}, TypeError, "out: expected float32 like x, got float64"),
    "out transposed": (
        lambda xp, a: {"out": xp.empty((3, 4), F32).T},
        ValueError,
        r"out: expected a C-contiguous array, got strides \[4, 16\]; pass np.ascontiguousarray",
    ),
    "out is x": (lambda xp, a: {"out": a["x"]}, ValueError, "out: shares memory with x, .* pass a new array"),
    "out has bias": (
        lambda xp, a: {"bias": a["out"][1]},
        ValueError,
        "out: shares memory with bias",
    ),
    "running in x": (lambda xp, a: {"running_var": a["x"][0]}, ValueError, "running_var: shares memory with x"),
    "running in each other": (
        lambda xp, a: {"running_var": a["running_mean"][:]},
        ValueError,
        "running_var: shares memory with running_mean",
    ),
}


def backward_arguments(xp):
    x = arguments(xp)["x"]
    return {
        "dy": x.copy(),
        "x": x,
        "saved": rv.batch_norm(x)[1],
        "weight": xp.ones(3, F32),
        "out": xp.zeros((4, 3), F32),
    }


BACKWARD = {
    "dy list": (lambda xp, a: {"dy": [[1.0]]}, TypeError, "dy: expected a NumPy array, got list"),
    "dy double": (lambda xp, a: {"dy": a["dy"].astype(float)}, TypeError, "dy: expected float32 like x, got float64"),
    "dy shape": (lambda xp, a: {"dy": a["dy"][:2]}, ValueError, r"dy: expected shape \(4, 3\) like x, got \(2, 3\)"),
    "weight": (lambda xp, a: {"weight": xp.ones(2, F32)}, ValueError, r"weight: expected shape \(3,\), got \(2,\)"),
    "out is x": (lambda xp, a: {"out": a["x"]}, ValueError, "out: shares memory with x"),
    "out is dy": (lambda xp, a: {"out": a["dy"]}, ValueError, "out: shares memory with dy"),
    "other x": (
        lambda xp, a: {"x": a["x"][:, :2].copy(), "dy": a["x"][:, :2].copy(), "weight": None, "out": None},
        ValueError,
        r"saved.mean: expected float64 of shape \(2,\) for this x, got float64 of shape \(3,\)",
    ),
}

LAYER_NORM = {
    "axes": (
        lambda xp, a: {"axes": 3},
        ValueError,
        r"axes: expected 1 to 2, the axes of x, shape \(4, 3\), got 3",
    ),
    "weight": (lambda xp, a: {"weight": xp.ones(4, F32)}, ValueError, r"weight: expected shape \(3,\), got \(4,\)"),
    "bias": (lambda xp, a: {"bias": xp.ones(())}, TypeError, "bias: expected float32 like x, got float64"),
    "eps": (lambda xp, a: {"eps": -1.0}, ValueError, "eps: expected a finite number ≥ 0, got -1.0"),
    "out": (lambda xp, a: {"out": a["x"]}, ValueError, "out: shares memory with x"),
}


def layer_arguments(xp):
    return {name: array for name, array in arguments(xp).items() if not name.startswith("running")}


CASES = [
    pytest.param(function, make, *case, id=f"{function.__name__}: {name}")
    for function, make, table in (
        (rv.batch_norm, arguments, FORWARD),
        (rv.batch_norm_backward, backward_arguments, BACKWARD),
        (rv.layer_norm, layer_arguments, LAYER_NORM),
    )
    for name, case in table.items()
]


@pytest.mark.parametrize(("function", "make", "change", "error", "message"), CASES)
def test_what_is_refused_is_left_alone_and_named_in_the_same_words(gpu, function, make, change, error, message):
    said = []
    for xp in (np, gpu):
        given = make(xp)
        given |= change(xp, given)
        arrays = {name: array for name, array in given.items() if isinstance(array, xp.ndarray)}
        before = {name: array.copy() for name, array in arrays.items()}
        with pytest.raises(error) as raised:
            function(**given)
        said.append(str(raised.value))
        for name, array in arrays.items():
            assert rv.to_host(array).tobytes() == rv.to_host(before[name]).tobytes(), name
    assert re.search(message, said[0])
    assert said[1].replace("CuPy", "NumPy").replace("cupy.", "np.") == said[0]


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var", "out"])
def test_arrays_of_two_libraries_are_refused(gpu, name):
    host, device = arguments(np), arguments(gpu)
    with pytest.raises(TypeError, match=rf"{name}: expected a CuPy array, got numpy.ndarray; pass cupy.asarray\(x\)"):
        rv.batch_norm(**(device | {name: host[name]}))
    with pytest.raises(TypeError, match=rf"{name}: expected a NumPy array, got a CuPy array; pass cupy.asnumpy\(x\)"):
        rv.batch_norm(**(host | {name: device[name]}))


def test_arrays_of_two_libraries_are_refused_going_back_too(gpu):
    host, device = backward_arguments(np), backward_arguments(gpu)
    for name, called in (("dy", "dy"), ("saved", "saved.mean"), ("weight", "weight"), ("out", "out")):
        with pytest.raises(TypeError, match=rf"{called}: expected a CuPy array, got numpy.ndarray"):
            rv.batch_norm_backward(**(device | {name: host[name]}))
    layer = rv.BatchNorm(3)
    with pytest.raises(TypeError, match=r"weight: expected a CuPy array, got numpy\.ndarray"):
        layer(device["x"])
    layer = rv.BatchNorm(3, device="cuda")
    layer(device["x"])
    with pytest.raises(TypeError, match=r"dy: expected a CuPy array, got numpy\.ndarray"):
        layer.backward(host["dy"])


# ---------------------------------------------------------------------------------------------------------------------
# to_device, to_host


@pytest.fixture
def second_gpu(gpu, monkeypatch):
    """The array library, with a GPU of number 1."""
    if REAL_GPU:
        if gpu.cuda.runtime.getDeviceCount() < 2:
            pytest.skip("there is one GPU")
        return gpu

    class Second(HostDevice):
        def here(self):
            return gpu.cuda.Device(1)

    monkeypatch.setitem(cuda._backends, 1, cuda.Backend(Second()))
    return gpu


ALL_DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.uint8, np.bool_, np.complex64]


def a_tree():
    values = {
        np.dtype(dtype).name: random((3, 4), np.float64, i).astype(dtype) for i, dtype in enumerate(ALL_DTYPES[:4])
    }
    others = [np.arange(6).reshape(2, 3).astype(dtype) for dtype in ALL_DTYPES[4:]]
    odd = (np.empty((0, 3), F32), np.array(3.0), None, random((4, 6))[::2, ::-3], random((4, 6)).T)
    return {"values": values, "nested": [others, odd], "nan": np.array([np.nan, -0.0, np.inf])}


def test_a_round_trip_keeps_nesting_dtypes_and_bits(gpu):
    tree = a_tree()
    if REAL_GPU and not hasattr(gpu, "bfloat16"):
        del tree["values"]["bfloat16"]
    there = rv.to_device(tree, "cuda")
    assert type(there["nested"]) is list
    assert type(there["nested"][1]) is tuple
    assert there["nested"][1][2] is None
    back = rv.to_host(there)
    assert rv.trees.leaves(back).keys() == rv.trees.leaves(tree).keys()
    for name, array in rv.trees.leaves(tree).items():
        if array is not None:
            device, host = rv.trees.leaves(there)[name], rv.trees.leaves(back)[name]
            assert isinstance(device, gpu.ndarray)
            assert type(host) is np.ndarray
            assert (host.dtype, host.shape, host.tobytes()) == (array.dtype, array.shape, array.tobytes()), name


def test_what_is_there_already_is_not_copied(gpu):
    tree = {"host": random(3), "device": gpu.ones(3)}
    there, here = rv.to_device(tree, "cuda:0"), rv.to_host(tree)
    assert there["device"] is tree["device"]
    assert here["host"] is tree["host"]
    assert tree["host"] is here["host"], "the tree is left as it was"
    assert list(here["device"]) == [1, 1, 1]


def test_a_second_gpu(second_gpu):
    x = random((4, 3))
    there = rv.to_device([x, rv.to_device(x, "cuda")], "cuda:1")
    assert [array.device.id for array in there] == [1, 1]
    assert [rv.to_host(array).tobytes() for array in there] == [x.tobytes()] * 2
    assert rv.to_device(there, "cuda")[0].device.id == 0
    with second_gpu.cuda.Device(1):
        assert rv.to_device(x, "cuda").device.id == 1, "CuPy's current one"
    layer = rv.BatchNorm(3, device="cuda:1")
    y = layer(there[0])
    assert {array.device.id for array in (y, layer.backward(y.copy()), *layer.buffers.values())} == {1}
    assert_same_bits(y.get(), rv.batch_norm(x)[0])
    with pytest.raises(ValueError, match=r"weight: expected an array on GPU 0, got one on GPU 1; copy it"):
        layer(rv.to_device(x, "cuda:0"))


MAKERS = {
    "to_device": lambda device: rv.to_device({"w": np.ones(3)}, device),
    "BatchNorm": lambda device: rv.BatchNorm(3, device=device),
    "LayerNorm": lambda device: rv.LayerNorm(3, device=device),
}


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "CUDA", "cuda:0 ", "cuda:-1", "cpu:0", "", 0, None])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_another_device_string_is_refused(make, device):
    with pytest.raises(
        ValueError, match=re.escape(f"device: expected 'cpu', 'cuda' or 'cuda:1' (GPU 1), got {device!r}")
    ):
        make(device)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_without_cupy_the_cure_is_named(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ModuleNotFoundError, match=r"device 'cuda:1' needs CuPy, .* pip install ravine\[cuda\]"):
        make("cuda:1")


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_gpu_that_does_not_exist_is_refused(make, gpu, monkeypatch):
    if not REAL_GPU:

        def no_device(number):
            raise RuntimeError("cudaErrorInvalidDevice: invalid device ordinal")

        runtime = SimpleNamespace(CUDARuntimeError=RuntimeError)
        monkeypatch.setattr(gpu.cuda, "runtime", runtime, raising=False)
        monkeypatch.setattr(cuda, "CupyDevice", no_device)
    with pytest.raises(
        ValueError, match="device: expected a GPU that CuPy can use, got 'cuda:99': cudaErrorInvalidDevice"
    ):
        make("cuda:99")


NO_ARRAYS = [([1.0], r"w\.0: expected a NumPy or CuPy array, got float"), ({"b": "text"}, r"w\.b: .*got str")]
NO_ARRAYS += [(np.float64(1), "w: .*got float64"), (np.ma.array([1.0]), "w: .*got MaskedArray; pass np.asarray")]


@pytest.mark.parametrize(("leaf", "message"), NO_ARRAYS, ids=[message for _, message in NO_ARRAYS])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_leaf_that_is_no_array_is_named(gpu, leaf, message, device):
    with pytest.raises(TypeError, match=f"^{message}"):
        rv.to_device({"w": leaf}, device)


def test_a_dtype_that_cupy_does_not_have_is_named(gpu):
    tree = {"w": np.ones(2), "s": [np.array(["text"])]}
    with pytest.raises(TypeError, match=r"^s\.0: CuPy has no <U4 for device 'cuda': .*convert it with"):
        rv.to_device(tree, "cuda")
    assert rv.to_host(tree)["s"][0] is tree["s"][0]


# ---------------------------------------------------------------------------------------------------------------------
# Batches, the gradient check, the example


def test_minibatches_of_either_library_in_an_order_of_either(gpu):
    host = np.arange(20).reshape(10, 2), np.arange(10)
    for xp in (np, gpu):
        arrays = host[0], gpu.asarray(host[1])
        seen = []
        for x, y in rv.data.minibatches(*arrays, batch_size=4, rng=xp.random.default_rng(0)):
            assert isinstance(x, np.ndarray)
            assert isinstance(y, gpu.ndarray)
            assert (x[:, 0] == 2 * y.get()).all()
            seen += y.tolist()
        assert sorted(seen) == list(range(10))
        assert seen != sorted(seen)


def test_check_gradient_on_the_device(gpu):
    params = {"w": gpu.asarray(random((3, 2), np.float64)), "b": gpu.ones(2)}
    before = [array.get() for array in params.values()]

    def right(p):
        return (p["w"] ** 2).sum() + (p["b"] ** 3).sum(), {"w": 2 * p["w"], "b": 3 * p["b"] ** 2}

    assert rv.check_gradient(right, params)
    wrong = rv.check_gradient(lambda p: (right(p)[0], right(p)[1] | {"b": 2 * p["b"]}), params)
    assert not wrong
    assert wrong.message.endswith("wrong in b")
    with pytest.raises(
        TypeError, match=r"gradients: b: expected an array of cupy like its parameter, got one of numpy"
    ):
        rv.check_gradient(lambda p: (right(p)[0], right(p)[1] | {"b": np.ones(2)}), params)
    for array, old in zip(params.values(), before, strict=True):
        assert_same_bits(array.get(), old)


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    path = Path(__file__).parent.parent / "examples" / "digits.py"
    spec = importlib.util.spec_from_file_location("digits", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class DrawsLikeCupy:
    """A NumPy Generator without what CuPy's has not, so that the same code asks for the same numbers."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.random, self.standard_normal, self.integers = rng.random, rng.standard_normal, rng.integers


@pytest.mark.skipif(REAL_GPU, reason="matmul and exp of a GPU round in another way, and so does its random generator")
@pytest.mark.parametrize("name", ["momentum", "AdamW"])
def test_an_epoch_of_the_example_gives_the_bits_of_numpy(digits, gpu, name, monkeypatch):
    made, make = [], digits.make_optimizer
    monkeypatch.setattr(
        digits, "make_optimizer", lambda name, params, steps: made.append(params) or make(name, params, steps)
    )
    results = []
    for xp, rng, device in ((gpu, gpu.random.default_rng(5), "cuda"), (np, DrawsLikeCupy(5), "cpu")):
        data = [array[:500] for array in digits.load(xp)]
        results.append(digits.train(name, data, 1, rng, device))
    assert results[0] == results[1]
    same(gpu, made[0], made[1])


def test_the_example_learns_on_the_device(digits, gpu):
    losses, accuracies = digits.train("AdamW", digits.load(gpu), 1, gpu.random.default_rng(0), "cuda")
    assert accuracies[-1] > 0.85
    assert losses[-1] < 1
