"""Arrays of other libraries: taken without a copy by the facade, refused by name where they cannot be shared."""

import ctypes
import sys
from array import array
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

import ravine as rv
from ravine.backends import foreign
from tests.conftest import assert_same_bits

F32 = np.float32


class Interface:
    """What shows NumPy's array interface alone."""

    def __init__(self, array):
        self._array, self.__array_interface__ = array, array.__array_interface__


class Dlpack:
    """What speaks DLPack alone, on a device of our choice."""

    def __init__(self, array, device=(1, 0)):
        if device[0] in (1, 3) and np.lib.NumpyVersion(np.__version__) < "2.1.0":
            pytest.skip("this NumPy takes what comes by DLPack for read-only, and gives no read-only arrays")
        self.array, self.device = array, device

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device


#: From a NumPy array of float32: an object of another kind over the same memory.
KINDS = {
    "memoryview": memoryview,
    "ctypes": lambda a: (ctypes.c_float * a.size).from_buffer(a) if a.ndim == 1 else memoryview(a),
    "array interface": Interface,
    "DLPack": Dlpack,
    "DLPack, pinned": lambda a: Dlpack(a, (3, 0)),
    "torch": lambda a: pytest.importorskip("torch", reason="torch is not installed: make test-adapters").from_numpy(a),
    "torch, with gradient": lambda a: (
        pytest.importorskip("torch", reason="torch is not installed: make test-adapters").from_numpy(a).requires_grad_()
    ),
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@every_kind
@pytest.mark.parametrize("shape", [(7,), (3, 5), (100, 100)])
def test_parameters_and_gradients_of_other_libraries_are_stepped_in_place(kind, shape):
    rng = np.random.default_rng(0)
    w, expected = (np.ones(shape, F32) for _ in range(2))
    wrapped = {"hidden": {"w": kind(w)}}
    opt, reference = rv.AdamW(wrapped, lr=0.1), rv.AdamW({"hidden": {"w": expected}}, lr=0.1)
    for _ in range(3):
        g = rng.standard_normal(shape).astype(F32)
        opt.step({"hidden": {"w": kind(g.copy())}})
        reference.step({"hidden": {"w": g}})
    assert_same_bits(w, expected)
    assert opt.state_dict()["updates"] == {"hidden.w": 3}
    opt.load_state_dict(reference.state_dict())
    assert isinstance(opt.state_dict()["states"]["hidden.w"]["m"], np.ndarray)


@every_kind
def test_functions_take_them_too(kind):
    p, g, m, v = np.ones(5, F32), np.full(5, 0.5, F32), np.zeros(5, F32), np.zeros(5, F32)
    q, n, u = p.copy(), m.copy(), v.copy()
    rv.functional.adamw_(kind(p), kind(g), kind(m), kind(v), step=1, lr=0.1)
    rv.functional.adamw_(q, g, n, u, step=1, lr=0.1)
    for got, expected in zip((p, m, v), (q, n, u), strict=True):
        assert_same_bits(got, expected)
    a = np.array([3.0, 4.0], F32)
    assert rv.global_norm([kind(a)]) == 5
    assert rv.clip_by_global_norm_({"a": kind(a)}, 2.5) == 5
    assert_same_bits(a, np.array([1.5, 2.0], F32))


def test_array_array_in_float64():
    w = array("d", [1.0, 2.0])
    rv.SGD(w, lr=0.5).step(array("d", [1.0, 2.0]))
    assert w.tolist() == [0.5, 1.0]


@pytest.mark.parametrize("order", ["reversed", "transposed", "strided"])
def test_strides_survive(order):
    whole = np.arange(24.0).reshape(4, 6)
    view = {"reversed": whole[::-1], "transposed": whole.T, "strided": whole[::2, ::3]}[order]
    expected = view - 0.5
    rv.SGD({"w": memoryview(view)}, lr=0.5).step({"w": np.ones(view.shape)})
    assert_same_bits(view, expected)


# Refusals


def frozen(a):
    a = a.copy()
    a.flags.writeable = False
    return a


@pytest.mark.parametrize("kind", [memoryview, Interface, Dlpack], ids=["memoryview", "array interface", "DLPack"])
def test_read_only_arrays_are_good_gradients_and_no_parameters(kind):
    w, g = np.ones(3, F32), kind(frozen(np.ones(3, F32)))
    rv.SGD({"w": w}, lr=0.25).step({"w": g})
    assert_same_bits(w, np.full(3, 0.75, F32))
    with pytest.raises(
        ValueError, match=r"params\['hidden.w'\]: a .* that is read-only; pass a writable copy: np.array"
    ):
        rv.SGD({"hidden": {"w": g}}, lr=0.25)
    with pytest.raises(ValueError, match=r"p: a .* that is read-only"):
        rv.functional.sgd_(g, w, lr=0.1)
    with pytest.raises(ValueError, match=r"a.0: a .* that is read-only"):
        rv.clip_by_global_norm_({"a": [g]}, 1.0)


def test_what_is_no_array_is_refused_as_before():
    for wrong in (1.0, "w", b"ww", object(), np.float32(1.0)):
        with pytest.raises(TypeError, match=r"params\['w'\]: expected a NumPy array, got"):
            rv.SGD({"w": wrong}, lr=0.1)
        # A scalar of NumPy is a gradient, of no axes; never of these three.
        error, text = (ValueError, r"shape \(3,\)") if isinstance(wrong, np.generic) else (TypeError, "a NumPy array")
        with pytest.raises(error, match=rf"grads\['w'\]: expected {text}.*, got"):
            rv.SGD({"w": np.ones(3)}, lr=0.1).step({"w": wrong})
    with pytest.raises(TypeError, match=r"params\['w'\]: expected float64, float32, .* got uint8"):
        rv.SGD({"w": bytearray(3)}, lr=0.1)


def test_wrong_shapes_and_dtypes_are_named():
    opt = rv.SGD({"w": memoryview(np.ones(3, F32))}, lr=0.1)
    with pytest.raises(ValueError, match=r"grads\['w'\]: expected shape \(3,\) like its parameter, got \(4,\)"):
        opt.step({"w": memoryview(np.ones(4, F32))})
    with pytest.raises(TypeError, match=r"grads\['w'\]: expected float32 like its parameter, got float64"):
        opt.step({"w": memoryview(np.ones(3))})


def test_memory_that_is_shared_is_seen_across_libraries():
    w = np.ones(4, F32)
    with pytest.raises(ValueError, match=r"params\['a'\] and params\['b'\] share memory"):
        rv.SGD({"a": memoryview(w), "b": w[2:]}, lr=0.1)
    with pytest.raises(ValueError, match=r"grads\['a'\]: shares memory with parameter 'a'"):
        rv.SGD({"a": w}, lr=0.1).step({"a": Dlpack(w)})


def test_a_replaced_or_moved_parameter_is_found():
    params = {"w": memoryview(np.ones(3, F32))}
    opt = rv.SGD(params, lr=0.1)
    params["w"] = memoryview(np.ones(3, F32))
    with pytest.raises(ValueError, match=r"params\['w'\] is another array than the one given"):
        opt.step({"w": np.ones(3, F32)})
    moving = Dlpack(np.ones(3, F32))
    opt = rv.SGD({"w": moving}, lr=0.1)
    opt.step({"w": np.ones(3, F32)})
    moving.array = np.ones(3, F32)
    with pytest.raises(ValueError, match=r"params\['w'\]: the array was resized, reshaped, moved"):
        opt.step({"w": np.ones(3, F32)})
    assert_same_bits(moving.array, np.ones(3, F32))


def test_a_released_memoryview_cannot_take_the_memory_away():
    memory = bytearray(np.ones(3, F32).tobytes())
    view = memoryview(memory).cast("f")
    opt = rv.SGD({"w": view}, lr=0.25)
    view.release()
    with pytest.raises(TypeError, match=r"params\['w'\]: cannot share the memory of a memoryview: .*released"):
        opt.step({"w": np.ones(3, F32)})
    with pytest.raises(BufferError):
        memory.extend(b"more")


def test_other_devices_are_refused_by_name():
    with pytest.raises(
        TypeError, match=r"params\['w'\]: cannot share the memory of a .*Dlpack: it is on a device of kind 8"
    ):
        rv.SGD({"w": Dlpack(np.ones(3), (8, 0))}, lr=0.1)
    opt = rv.SGD({"w": np.ones(3)}, lr=0.1)
    with pytest.raises(TypeError, match=r"grads\['w'\]: cannot share the memory of .*: it is on a device of kind 8"):
        opt.step({"w": Dlpack(np.ones(3), (8, 0))})


def test_a_gpu_without_cupy_is_refused_with_the_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    opt = rv.SGD({"w": np.ones(3)}, lr=0.1)
    with pytest.raises(
        TypeError, match=r"grads\['w'\]: .* it is on a GPU, which needs CuPy: pip install ravine\[cuda\]"
    ):
        opt.step({"w": Dlpack(np.ones(3), (2, 0))})


def test_normalisation_returns_arrays_and_so_takes_numpys_and_cupys_alone():
    with pytest.raises(TypeError, match=r"x: expected a NumPy array, got memoryview; pass np.asarray"):
        rv.batch_norm(memoryview(np.ones((4, 3), F32)))


# On a GPU


class OnGpu:
    """Another library's array on GPU 0, as CuPy meets it; ``read_only`` as JAX's say it."""

    def __init__(self, array, read_only=False):
        self.array = array
        self.__cuda_array_interface__ = {"data": (array.data.ptr, read_only)}

    def __dlpack_device__(self):
        return (2, 0)


@pytest.fixture
def dlpack(gpu, monkeypatch):
    """CuPy's `from_dlpack`, of what stands in for it, too."""
    if not hasattr(gpu, "from_dlpack") or gpu.__name__ != "cupy":
        monkeypatch.setattr(gpu, "from_dlpack", lambda x: x.array, raising=False)
    else:
        monkeypatch.setattr(gpu, "from_dlpack", lambda x, real=gpu.from_dlpack: real(x.array))
    return gpu


def test_arrays_on_a_gpu_are_stepped_there(dlpack):
    w, expected, g = (dlpack.asarray(np.full((3, 4), value, F32)) for value in (1, 1, 0.5))
    opt, reference = rv.AdamW({"w": OnGpu(w)}, lr=0.1), rv.AdamW({"w": expected}, lr=0.1)
    for _ in range(2):
        opt.step({"w": OnGpu(g)})
        reference.step({"w": g})
    assert_same_bits(w.get(), expected.get())
    rv.functional.sgd_(OnGpu(w), OnGpu(g), lr=0.5)
    rv.functional.sgd_(expected, g, lr=0.5)
    assert_same_bits(w.get(), expected.get())
    assert float(rv.global_norm([OnGpu(g)])) == float(rv.global_norm([g]))


def test_arrays_on_a_gpu_are_refused_where_they_cannot_be_right(dlpack):
    w, other = dlpack.asarray(np.ones(3, F32)), dlpack.asarray(np.ones(3, F32))
    with pytest.raises(ValueError, match=r"params\['w'\]: a .*OnGpu that is read-only"):
        rv.SGD({"w": OnGpu(w, read_only=True)}, lr=0.1)
    opt = rv.SGD({"w": OnGpu(w)}, lr=0.1)
    opt.step({"w": OnGpu(other, read_only=True)})
    with pytest.raises(TypeError, match=r"grads\['w'\]: expected a CuPy array, got numpy.ndarray; pass cupy.asarray"):
        opt.step({"w": memoryview(np.ones(3, F32))})
    with pytest.raises(TypeError, match=r"grads\['w'\]: expected a NumPy array, got a CuPy array; pass cupy.asnumpy"):
        rv.SGD({"w": np.ones(3, F32)}, lr=0.1).step({"w": OnGpu(other)})
    moving = OnGpu(w)
    opt = rv.SGD({"w": moving}, lr=0.1)
    moving.array = other
    with pytest.raises(ValueError, match=r"params\['w'\]: the array was resized, reshaped, moved"):
        opt.step({"w": OnGpu(other)})


# torch's tensors


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch is not installed: make test-adapters")


def test_bfloat16_tensors_are_shared(torch):
    w, g = torch.ones(4, 3, dtype=torch.bfloat16).T, torch.full((3, 4), 0.5, dtype=torch.bfloat16)
    expected = np.ones((3, 4), ml_dtypes.bfloat16)
    rv.AdamW({"w": w}, lr=0.1).step({"w": g})
    rv.AdamW({"w": expected}, lr=0.1).step({"w": np.full((3, 4), 0.5, ml_dtypes.bfloat16)})
    assert_same_bits(w.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16), expected)


def test_tensors_that_cannot_be_shared_are_refused_by_name(torch):
    for wrong in (
        torch.ones(3).to_sparse(),
        torch.ones(3, dtype=torch.complex64),
        torch.ones(3, dtype=torch.complex64).conj().imag,  # the numbers in memory have the other sign
        torch.ones(3, device="meta"),
    ):
        with pytest.raises(TypeError, match=r"params\['w'\]: cannot share the memory of a torch.Tensor: "):
            rv.SGD({"w": wrong}, lr=0.1)
        with pytest.raises(TypeError, match=r"grads\['w'\]: cannot share the memory of a torch.Tensor: "):
            rv.SGD({"w": np.ones(3, F32)}, lr=0.1).step({"w": wrong})
    with pytest.raises(ValueError, match=r"params\['w'\]: elements share memory"):
        rv.SGD({"w": torch.ones(3).expand(2, 3)}, lr=0.1)


def test_a_tensor_whose_data_was_replaced_is_found(torch):
    w = torch.nn.Parameter(torch.ones(3))
    opt = rv.SGD({"w": w}, lr=0.25)
    opt.step({"w": torch.ones(3)})
    assert w.tolist() == [0.75] * 3
    w.data = torch.ones(3)
    with pytest.raises(ValueError, match=r"params\['w'\]: the array was resized, reshaped, moved"):
        opt.step({"w": torch.ones(3)})


# JAX's arrays


@pytest.fixture
def jax():
    return pytest.importorskip("jax", reason="jax is not installed: make test-adapters")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_jax_gradients_of_numpy_parameters_are_taken_without_a_copy(jax, dtype):
    params = {"w": np.ones((3, 2), dtype), "b": np.zeros(2, dtype)}
    expected = {name: array.copy() for name, array in params.items()}
    x = np.ones((4, 3), dtype)
    grads = jax.grad(lambda p: ((x @ p["w"] + p["b"]) ** 2).sum())(params)
    assert isinstance(grads["w"], jax.Array)
    shared = foreign.adopt(grads["w"], "w", False)
    assert shared.ctypes.data == grads["w"].unsafe_buffer_pointer()
    rv.AdamW(params, lr=0.1).step(grads)
    rv.AdamW(expected, lr=0.1).step({name: np.array(g) for name, g in grads.items()})
    for name, w in params.items():
        assert_same_bits(w, expected[name])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_jax_arrays_are_no_parameters(jax, dtype):
    with pytest.raises(ValueError, match=r"params\['w'\]: a jax.*ArrayImpl that is read-only; pass a writable copy"):
        rv.SGD({"w": jax.numpy.ones(3, dtype)}, lr=0.1)


def test_jax_arrays_on_a_gpu_are_no_parameters(jax, monkeypatch):
    """As far as it can be told without one: CuPy's arrays do not say that they must not be written."""
    monkeypatch.setattr(foreign, "_of_dlpack", lambda x: SimpleNamespace())
    with pytest.raises(ValueError, match=r"params\['w'\]: a jax.*ArrayImpl that is read-only"):
        foreign.adopt(jax.numpy.ones(3), "params['w']", True)


def test_what_jax_traces_is_refused(jax):
    def step(g):
        rv.SGD({"w": np.ones(3, F32)}, lr=0.1).step({"w": g})
        return g

    with pytest.raises(TypeError, match=r"grads\['w'\]: "):
        jax.jit(step)(np.ones(3, F32))
