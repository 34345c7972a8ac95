"""What users do wrong with CuPy arrays: the same checks as for NumPy's, with the same words, before anything changes.

The numbers are the lines of the project's table of faults.
"""

import copy
import math
import os

import ml_dtypes
import numpy as np
import pytest

import ravine as rv
from tests.conftest import assert_same_bits
from tests.test_bits import finite

F32 = np.float32


def tree(xp):
    return {"hidden": {"w": xp.ones((3, 4), F32), "b": xp.zeros(4, F32)}, "out": [xp.ones(5, F32)]}


def grads(xp, **changes):
    g = {"hidden": {"w": xp.ones((3, 4), F32), "b": xp.ones(4, F32)}, "out": [xp.ones(5, F32)]}
    g["hidden"] |= changes
    return g


def step(**changes):
    """Step a small tree whose gradients differ from the right ones as told by functions of the array library."""

    def act(xp):
        params = tree(xp)
        opt = rv.Adam(params)
        return opt, params, lambda: opt.step(grads(xp, **{name: make(xp) for name, make in changes.items()}))

    return act


def make(params, **options):
    """Bind parameters made by a function of the array library."""

    def act(xp):
        made = params(xp)
        return None, made, lambda: rv.AdamW(made, **options)

    return act


def own_state_as_gradient(xp):
    params = tree(xp)
    opt = rv.Adam(params)
    state = opt._engine.states[0][0]
    return opt, params, lambda: opt.step(grads(xp, w=state))


def own_parameter_as_gradient(xp):
    params = tree(xp)
    opt = rv.Adam(params)
    return opt, params, lambda: opt.step(grads(xp, w=params["hidden"]["w"][::-1]))


def replaced(xp):
    params = tree(xp)
    opt = rv.Adam(params)
    params["hidden"]["w"] = params["hidden"]["w"] * 2
    return opt, params, lambda: opt.step(grads(xp))


def added(xp):
    params = tree(xp)
    opt = rv.Adam(params)
    params["more"] = xp.ones(2, F32)
    return opt, params, lambda: opt.step(grads(xp))


def other_nesting(xp):
    params = tree(xp)
    opt = rv.Adam(params)
    g = grads(xp)
    g["extra"] = g.pop("out")
    return opt, params, lambda: opt.step(g)


def overlapping(xp):
    x = xp.ones(10, F32)
    return {"a": x[:6], "b": x[4:]}


def duplicate(xp):
    x = xp.ones(10, F32)
    return {"a": x, "b": {"again": x}}


def breaks(step):
    """Be a number at first."""
    return float("nan") if step else 0.1


def broken_schedule(xp):
    params = tree(xp)
    opt = rv.SGD(params, lr=breaks)
    opt.step(grads(xp))
    return opt, params, lambda: opt.step(grads(xp))


FAULTS = {
    "2, overlapping": make(overlapping),
    "2, twice": make(duplicate),
    "3, a state as gradient": own_state_as_gradient,
    "3, a view of the parameter as gradient": own_parameter_as_gradient,
    "5, unaligned": make(lambda xp: xp.zeros(13, np.int8)[1:9].view(F32)),
    "5, integers": make(lambda xp: xp.ones(3, np.int32)),
    "5, bool": make(lambda xp: [xp.ones(3, bool)]),
    "6, another shape": step(w=lambda xp: xp.ones((4, 3), F32)),
    "6, a shape that would broadcast": step(b=lambda xp: xp.ones((4, 1), F32)),
    "6, another nesting": other_nesting,
    "7, a wider gradient": step(w=lambda xp: xp.ones((3, 4), np.float64)),
    "7, several at once": step(w=lambda xp: xp.ones((3, 4), np.float64), b=lambda xp: xp.ones(3, F32)),
    "10, lr": make(tree, lr=-1.0),
    "10, a schedule": broken_schedule,
    "16, replaced": replaced,
    "16, added": added,
    "25, an option": make(tree, wight_decay=0.1),
}


def outcome(act, xp):
    """Give the error of doing it, after a look at whether anything has changed."""
    opt, params, wrong = act(xp)

    def look():
        states = [] if opt is None else [s.tobytes() for states in opt._engine.states for s in states]
        counts = None if opt is None else (opt.steps, opt._engine.updates)
        return [leaf.tobytes() for leaf in rv.trees.leaves(params).values()], states, counts

    before = look()
    with pytest.raises((ValueError, TypeError)) as caught:
        wrong()
    assert look() == before
    return type(caught.value), str(caught.value)


@pytest.mark.parametrize("act", FAULTS.values(), ids=FAULTS)
def test_the_same_words_as_for_numpy(gpu, act):
    assert outcome(act, gpu) == outcome(act, np)


def test_fault_4_empty_and_zero_dimensional_arrays(gpu):
    params = [gpu.zeros((0, 3), F32), gpu.ones((), F32), gpu.ones(1, F32), gpu.zeros(0, np.float64)]
    opt = rv.SGD(params, lr=0.5)
    opt.step([gpu.ones(p.shape, p.dtype) for p in params])
    assert params[1].item() == params[2].item() == 0.5
    assert opt._engine.updates == [1, 1, 1, 1]


def test_fault_2_a_broadcast_parameter(gpu):
    with pytest.raises(ValueError, match=r"params: elements share memory \(a broadcast or sliding view, strides \[0\]"):
        rv.AdamW(gpu.broadcast_to(gpu.ones(1, F32), (4,)))


def test_fault_7_half_precision_gradients_are_widened(gpu):
    for dtype in (np.float16, ml_dtypes.bfloat16):
        w, g = finite(50, np.dtype(F32)), np.linspace(-2, 2, 50).astype(dtype)
        there = gpu.asarray(w)
        rv.SGD(w, lr=0.1).step(g)
        rv.SGD(there, lr=0.1).step(gpu.asarray(g))
        assert_same_bits(there.get(), w)


def test_fault_11_a_zero_denominator(gpu):
    w = gpu.asarray(np.array([1.0, 2.0, 3.0], F32))
    rv.Adam(w, lr=0.1, eps=0.0).step(gpu.asarray(np.array([0.0, 1e-24, 1.0], F32)))
    assert_same_bits(w.get()[:2], np.array([1.0, 2.0], F32))


def test_fault_12_half_precision_parameters(gpu):
    w = gpu.asarray(np.array([1.0, 2.0], np.float16))
    rv.Adam(w, lr=0.1, eps=1e-8).step(gpu.zeros(2, np.float16))
    assert_same_bits(w.get(), np.array([1.0, 2.0], np.float16))


@pytest.mark.skipif(os.environ.get("RAVINE_SLOW") != "1", reason="writes 4.3 GB: make test-slow")
def test_fault_20_more_than_2_to_the_31_elements(gpu):
    n = 2**31 + 5
    ones = gpu.broadcast_to(gpu.ones(1, np.float16), (n,))
    assert rv.global_norm(ones).item() == math.sqrt(n)
    w = gpu.zeros(n, np.float16)
    info = rv.SGD(w, lr=0.5, clip_norm=1e9).step(ones)
    assert info.grad_norm == math.sqrt(n)
    assert [w[i].item() for i in (0, 2**31 - 1, 2**31, n - 1)] == [-0.5] * 4


def test_fault_21_numpy_and_cupy_do_not_mix(gpu):
    there, here = tree(gpu), tree(np)
    kept = copy.deepcopy(here)
    with pytest.raises(TypeError, match=r"grads\['hidden.w'\]: expected a CuPy array, got numpy.ndarray; pass cupy.as"):
        rv.Adam(there).step(grads(gpu, w=np.ones((3, 4), F32)))
    with pytest.raises(
        TypeError, match=r"grads\['hidden.w'\]: expected a NumPy array, got a CuPy array; pass cupy.asn"
    ):
        rv.Adam(here).step(grads(np, w=gpu.ones((3, 4), F32)))
    with pytest.raises(TypeError, match=r"params\['b'\]: expected a CuPy array, got numpy.ndarray"):
        rv.Adam({"a": gpu.ones(3, F32), "b": np.ones(3, F32)})
    with pytest.raises(TypeError, match=r"params\['b'\]: expected a NumPy array, got a CuPy array"):
        rv.Adam({"a": np.ones(3, F32), "b": gpu.ones(3, F32)})
    with pytest.raises(TypeError, match=r"b: expected a CuPy array, got numpy.ndarray"):
        rv.global_norm({"a": gpu.ones(3, F32), "b": np.ones(3, F32)})
    with pytest.raises(TypeError, match=r"g: expected a CuPy array, got numpy.ndarray"):
        rv.functional.sgd_(gpu.ones(3, F32), np.ones(3, F32), lr=0.1)
    for name, leaf in rv.trees.leaves(here).items():
        assert_same_bits(rv.trees.leaves(there)[name].get(), leaf)
        assert_same_bits(leaf, rv.trees.leaves(kept)[name])


def test_fault_21_arrays_on_two_devices(gpu):
    if gpu.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two GPUs")
    with gpu.cuda.Device(1):
        elsewhere = gpu.ones((3, 4), F32)
    with pytest.raises(ValueError, match=r"grads\['hidden.w'\]: expected an array on GPU 0, got one on GPU 1; copy it"):
        rv.Adam(tree(gpu)).step(grads(gpu, w=elsewhere))
    with pytest.raises(ValueError, match=r"params\['b'\]: expected an array on GPU 0, got one on GPU 1"):
        rv.Adam({"a": gpu.ones((3, 4), F32), "b": elsewhere})


def test_fault_21_arrays_of_another_library_are_refused_with_the_cure(gpu):
    class Tensor:
        def __dlpack__(self, **options):
            raise NotImplementedError

    with pytest.raises(TypeError, match=r"expected a CuPy array, got .*Tensor; pass cupy.from_dlpack\(x\), which also"):
        rv.Adam(tree(gpu)).step(grads(gpu, w=Tensor()))


def test_an_error_on_the_way_to_the_device_is_made_good_by_the_next_step(gpu_device, monkeypatch):
    xp = gpu_device.xp
    w, g = finite(40, np.dtype(F32)), np.ones(40, F32)
    there = xp.asarray(w)
    opt = rv.SGD(there, lr=0.1)

    def fail(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(gpu_device, "load", fail)
        with pytest.raises(MemoryError):
            opt.step(xp.asarray(g))
    assert_same_bits(there.get(), w)
    opt.step(xp.asarray(g))
    rv.SGD(w, lr=0.1).step(g)
    assert_same_bits(there.get(), w)
