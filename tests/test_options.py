"""What an optimizer is told besides its gradients: rates, options, schedules; what it says of them; its lock."""

import dis
import sys
from functools import partial

import numpy as np
import pytest

import ravine as rv

# ---------------------------------------------------------------------------------------------------------------------
# 32: Ctrl-C at any moment of a step

#: After these, Python looks whether a signal has come.
LOOKS = {dis.opmap[name] for name in ("CALL", "CALL_FUNCTION_EX", "RESUME", "JUMP_BACKWARD") if name in dis.opmap}


def interrupted_at(n, call):
    """Raise KeyboardInterrupt where ravine's own Python would handle the n-th signal; say whether there was one."""
    left, last = [n], {}

    def trace(frame, event, argument):
        if "ravine" not in frame.f_globals.get("__name__", "") or frame.f_globals["__name__"].startswith("tests"):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            if last.get(id(frame)) in LOOKS:
                left[0] -= 1
                if left[0] == -1:
                    raise KeyboardInterrupt
            last[id(frame)] = frame.f_code.co_code[frame.f_lasti]
        elif event == "call":
            last.pop(id(frame), None)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return left[0] < 0


def accumulated(opt, g):
    opt.accumulate(g)
    opt.step()


STEPS = {
    "schedule": (partial(rv.SGD, lr=rv.schedules.linear(0.5, 0.25, 100) * 0.5), lambda opt, g: opt.step(g)),
    "grad_scale": (partial(rv.Adam, lr=0.1), lambda opt, g: opt.step(g, grad_scale=2.0)),
    "loss_scale": (partial(rv.Adam, lr=0.1), lambda opt, g: opt.step(g, grad_scale=rv.DynamicLossScale(2.0))),
    "accumulate": (partial(rv.SGD, lr=0.1), accumulated),
    "rows": (
        partial(rv.SGD, lr=0.1),
        lambda opt, g: opt.step(rv.RowSparse(np.array([0]), np.ones((1, 3), np.float32))),
    ),
    "muon": (partial(rv.Muon, lr=0.1), lambda opt, g: opt.step(g)),
    "adafactor": (partial(rv.Adafactor, lr=0.1), lambda opt, g: opt.step(g)),
}


@pytest.mark.parametrize("where", ["cpu", "gpu"])
@pytest.mark.parametrize(("make", "step"), STEPS.values(), ids=STEPS)
def test_fault_32_ctrl_c_at_any_moment_of_a_step_leaves_no_lock(make, step, where, request):
    put = np.asarray if where == "cpu" else request.getfixturevalue("gpu").asarray
    if where == "gpu" and step is STEPS["rows"][1]:
        pytest.skip("its rows are NumPy's; they take the lock of the step alone")
    g, n, opt = put(np.ones((2, 3), np.float32)), 0, make(put(np.ones((2, 3), np.float32)))
    step(opt, g)
    while interrupted_at(n, lambda: step(opt, g)):
        opt.discard_accumulated()
        before = opt.steps
        step(opt, g)
        assert opt.steps == before + 1, n
        n += 1 if where == "cpu" else 7
    assert n > 10
