"""Faults 17, 18 and 32: whatever is interrupted or forked away, steps are whole, and nothing stays locked.

RAVINE_SLOW=1 has the storm blow for longer.
"""

import os
import subprocess
import sys

import pytest

from tests.storms import CASES
from tests.test_faults import python

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors in /proc")
SECONDS = "20" if os.environ.get("RAVINE_SLOW") else "0.3"


#: Not a process for each: it takes longer to begin than a storm.
TOGETHER = [list(CASES)[i::4] for i in range(4)]


@pytest.mark.parametrize("cases", TOGETHER, ids=", ".join)
def test_fault_32_a_storm_of_signals_tears_nothing(cases):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.storms", SECONDS, *cases],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


FORKED = """
    import os, threading, time, warnings
    import numpy as np, ravine as rv
    warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, about any fork of a process with threads
    n = 2_000_000
    w, g = np.zeros(n, np.float32), np.ones(n, np.float32)
    opt, end = rv.SGD(w, lr={lr}), threading.Event()

    def steps():
        while not end.is_set():
            opt.step(g)

    thread = threading.Thread(target=steps)
    thread.start()
    statuses = []
    for _ in range({forks}):
        time.sleep(0.002)
        child = os.fork()
        if child == 0:
            before = opt.steps
            whole = w.min() == w.max() == -before
            opt.step(g)
            os._exit(0 if whole and opt.steps == before + 1 and w[0] == w[-1] == -opt.steps else 1)
        statuses.append(os.waitpid(child, 0)[1])
    end.set()
    thread.join()
    assert w.min() == w.max() == -opt.steps
    opt.step(g)
    print(statuses == [0] * len(statuses))
"""


@pytest.mark.parametrize("lr", ["1.0", "lambda step: 1.0"], ids=["constant", "scheduled"])
def test_fault_18_a_child_forked_during_a_step_of_another_thread_goes_on(lr):
    assert python(FORKED.format(lr=lr, forks=10)) == "True"


def test_fault_18_a_fork_within_a_step_frees_nothing_that_the_child_is_in():
    printed = python("""
        import os
        import numpy as np, ravine as rv

        def lr(step):
            if step == 1 and not children:
                children.append(os.fork())
                if children == [0]:
                    try:
                        opt.step(np.ones(2))
                    except RuntimeError as error:
                        os._exit(0 if "another thread is inside" in str(error) else 2)
                    os._exit(1)
            return 1.0

        children, w = [], np.zeros(2)
        opt = rv.SGD(w, lr=lr)
        opt.step(np.ones(2)), opt.step(np.ones(2))
        print(os.waitpid(children[0], 0)[1], w.tolist())
    """)
    assert printed == "0 [-2.0, -2.0]"
