"""The kernels under sanitizers: every access is inside its array.

On the CPU those of addresses and undefined behaviour, on a GPU compute-sanitizer's of memory and of races.
"""

import os
import shutil
import subprocess
import sys

import pytest

from tests.cuda_on_cpu import sanitized_environment

#: Every kernel, every dtype, sizes around the widths, strides; not every rule: they differ in arithmetic only.
STEP = """
    every_length and (float32-adam or float16-adam) or strided_arrays and gaps-adam or strided_norms
    or dtypes_in_one and adam or skipped and adam or norms_and_clipping or functions_equal and float32-float32-momentum
    or follows_the_rule
"""
#: Loss scales that change on the device, and sums of micro-batches.
SCALED = "on_a_device_sums and transposed and float16 or nothing_waits"
SELECTIONS = {
    "loss scale": ["tests/test_loss_scale.py", "-k", SCALED],
    "strides": ["tests/test_cuda_step.py", "-k", "strided_arrays and gaps-adam"],
    "states": ["tests/test_cuda_states.py", "-k", "skipped and adam-8bit"],
    "rows": ["tests/test_sparse.py", "-k", "strided_cupy"],
}
#: Half a minute or more each, on a CPU.
LONG = {
    "step": ["tests/test_cuda_step.py", "-k", " ".join(STEP.split())],
    "bfloat16": ["tests/test_cuda_bfloat16.py", "-k", "shifted and adam-8bit"],
    "norm": ["tests/test_cuda_norm.py", "-k", "sanitized"],
    "onebit": ["tests/test_cuda_onebit.py", "-k", "sanitized and not float64 and not bfloat16 or pieces"],
}


GPU = bool(os.environ.get("RAVINE_GPU"))
if GPU or os.environ.get("RAVINE_SLOW"):
    SELECTIONS |= LONG
TOOLS = ["memcheck", "racecheck"] if GPU else ["addresses"]


@pytest.mark.skipif(bool(os.environ.get("RAVINE_SANITIZE")), reason="it is what starts the others")
@pytest.mark.skipif(GPU and not shutil.which("compute-sanitizer"), reason="compute-sanitizer is not installed")
@pytest.mark.parametrize("selection", SELECTIONS.values(), ids=SELECTIONS)
@pytest.mark.parametrize("tool", TOOLS)
def test_kernels_are_clean(selection, tool):
    checked = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1"] if GPU else []
    tests = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *selection]
    environment = os.environ if GPU else sanitized_environment()
    done = subprocess.run(
        checked + tests, env={**environment, "RAVINE_SANITIZE": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
