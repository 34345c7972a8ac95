"""What only a GPU can show: graphs that are captured and replayed, and streams."""

import os

import numpy as np
import pytest

import ravine as rv
from tests.conftest import assert_same_bits

pytestmark = pytest.mark.skipif(not os.environ.get("RAVINE_GPU"), reason="needs a GPU: make test-gpu")

SHAPES = [(1000, 301), (7,), (64, 64), (50_001,)]


def problem(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape, np.float32) for shape in SHAPES]


def assert_equal_lists(there, here):
    for i, (a, b) in enumerate(zip(there, here, strict=True)):
        assert_same_bits(a.get(), b, i)


FOLLOWED = {"average": rv.SWA(start=3, every=4), "lookahead": rv.Lookahead(6)}


@pytest.mark.parametrize(
    "options",
    [{}, {"clip_norm": 0.5}, {"clip_norm": 0.5, "nonfinite": "skip"}, FOLLOWED, {"states": "8bit"}],
    ids=str,
)
def test_a_captured_step_can_be_replayed(gpu, options):
    here, g = problem(), problem(1)
    there, gradients = [gpu.asarray(w) for w in here], [gpu.asarray(x) for x in g]
    own, opt = rv.AdamW(here, lr=0.01, **options), rv.AdamW(there, lr=0.01, **options)
    stream = gpu.cuda.Stream(non_blocking=True)
    gpu.cuda.Device().synchronize()
    with stream:
        opt.step(gradients)
        stream.synchronize()
        stream.begin_capture()
        opt.step(gradients)
        graph = stream.end_capture()
        for _ in range(20):
            graph.launch(stream=stream)
        opt.lr = 0.002
        graph.launch(stream=stream)
        stream.synchronize()
    for _ in range(21):
        own.step(g)
    own.lr = 0.002
    own.step(g)
    assert opt.steps == own.steps == 22
    assert opt._engine.updates == own._engine.updates
    assert_equal_lists(there, here)


def test_a_captured_batch_norm_can_be_replayed(gpu):
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 16, 12, 28, 28), np.float32)
    here, there = rv.BatchNorm(12), rv.BatchNorm(12, device="cuda")
    x_there, dy_there = gpu.asarray(x), gpu.asarray(dy)
    stream = gpu.cuda.Stream(non_blocking=True)
    gpu.cuda.Device().synchronize()
    with stream:
        there.forward(x_there)
        there.backward(dy_there)
        stream.synchronize()
        stream.begin_capture()
        y = there.forward(x_there)
        dx = there.backward(dy_there)
        graph = stream.end_capture()
        for _ in range(3):
            graph.launch(stream=stream)
        stream.synchronize()
    for _ in range(4):
        expected = here.forward(x), here.backward(dy)
    assert_equal_lists(
        [y, dx, *there.grads.values(), *there.buffers.values()],
        [*expected, *here.grads.values(), *here.buffers.values()],
    )


def test_what_cannot_be_captured_is_refused(gpu):
    w = gpu.ones(3, np.float32)
    gpu.cuda.Device().synchronize()
    scheduled = rv.SGD(w, lr=rv.schedules.cosine(0.1, 5))
    raising = rv.SGD(w, lr=0.1, nonfinite="raise")
    g = w.copy()
    stream = gpu.cuda.Stream(non_blocking=True)
    gpu.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        try:
            with pytest.raises(RuntimeError, match="a captured step cannot ask a schedule"):
                scheduled.step(g)
            with pytest.raises(RuntimeError, match="looks at every answer"):
                raising.step(g)
        finally:
            stream.end_capture()
    assert_same_bits(w.get(), np.ones(3, np.float32))


def test_steps_on_two_streams_follow_each_other(gpu):
    here, g = problem(), problem(1)
    there, gradients = [gpu.asarray(w) for w in here], [gpu.asarray(x) for x in g]
    own, opt = rv.AdamW(here, lr=0.01), rv.AdamW(there, lr=0.01)
    streams = [gpu.cuda.Stream(non_blocking=True) for _ in range(2)]
    heavy = gpu.ones((4000, 4000), np.float32)
    gpu.cuda.Device().synchronize()
    for i in range(10):
        with streams[i % 2]:
            if i % 2 == 0:
                heavy @ heavy
            opt.step(gradients)
    gpu.cuda.Device().synchronize()
    for _ in range(10):
        own.step(g)
    assert_equal_lists(there, here)


def test_a_captured_step_goes_on_scaling_the_loss(gpu):
    here, g = problem(), problem(1)
    there, gradients = [gpu.asarray(w) for w in here], [gpu.asarray(x) for x in g]
    own, opt = rv.AdamW(here, lr=0.01), rv.AdamW(there, lr=0.01)
    one, other = (rv.DynamicLossScale(2**4, growth_interval=3, max_scale=2**10) for _ in range(2))
    buffers = [gpu.empty_like(x) for x in gradients]

    def scaled_step():
        for buffer, x in zip(buffers, gradients, strict=True):
            gpu.multiply(x, other.value, out=buffer)
        opt.step(buffers, grad_scale=other)

    stream = gpu.cuda.Stream(non_blocking=True)
    gpu.cuda.Device().synchronize()
    with stream:
        scaled_step()
        scaled_step()  # the value has become an array by now
        stream.synchronize()
        stream.begin_capture()
        scaled_step()
        graph = stream.end_capture()
        for _ in range(12):
            graph.launch(stream=stream)
        stream.synchronize()
    for _ in range(14):
        own.step([x * np.float32(one.value) for x in g], grad_scale=one)
    assert opt.steps == own.steps == 14
    assert other.state_dict() == one.state_dict()
    assert_equal_lists(there, here)
