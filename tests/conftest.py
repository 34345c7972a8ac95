"""What the tests of steps share: engines made by a rule's name, hyperparameters from its ranges, bits compared."""

import itertools
import os
import sys
import warnings

import numpy as np
import pytest

import ravine as rv
from ravine.averages import after_rule
from ravine.backends import cuda
from tests.cuda_on_cpu import HostDevice

RULES = rv._core.rules()

#: Those whose coefficients depend on norms of each tensor, so that an element's step depends on all the others.
LAYERWISE = {rule for rule, about in RULES.items() if about["norms"]}

#: Neutral nowhere: neither 0 nor 1, nor a value at which two formulas agree.
VALUES = {
    "not_negative": [(0.03, 0.0017, 0.3), (0.0007, 0.2, 1.9)],
    "fraction": [(0.9, 0.35, 0.99), (0.6, 0.995, 0.8)],
    "not_below_one": [(1.2,), (1.7,)],
    "whole": [(4.0,), (9.0,)],
}


def instruction_sets():
    """Name the instruction sets that this processor has."""
    before = rv._core.simd_level()
    found = dict.fromkeys(rv._core.set_simd(name) for name in ("baseline", "avx2", "avx512"))
    rv._core.set_simd(before)
    return tuple(found)


def own_hyperparameters(rule):
    """Name the rule's hyperparameters but the decay, which is an option of every rule."""
    return {name: kind for name, kind in RULES[rule]["hyperparameters"].items() if name != "weight_decay"}


#: Arguments of classes and functions that are several of the rules' numbers.
TUPLES = {
    "betas": ("beta1", "beta2", "beta3"),
    "etas": ("eta_minus", "eta_plus"),
    "step_sizes": ("step_min", "step_max"),
}


def as_arguments(hyper):
    """Give a rule's hyperparameters as the arguments of its function."""
    given = dict(hyper)
    for name, parts in TUPLES.items():
        if values := tuple(given.pop(part) for part in parts if part in given):
            given[name] = values
    return given


def hyper_sets(rule):
    """Every setting of the rule's switches, with two sets of numbers."""
    kinds = own_hyperparameters(rule)
    switches = [name for name, kind in kinds.items() if kind == "switch"]
    for numbers in range(2):
        values = {kind: itertools.cycle(sets[numbers]) for kind, sets in VALUES.items()}
        hyper = {name: next(values[kind]) for name, kind in kinds.items() if kind != "switch"}
        for setting in itertools.product((1.0, 0.0), repeat=len(switches)):
            yield hyper | dict(zip(switches, setting, strict=True))


def zero_states(rule, shape, dtype, xp=np, states=None):
    """Make the states before the first update, of a parameter that computes in this dtype."""
    arrays = rv._core.state_arrays(rule, shape, np.dtype(dtype).name, states)
    return [xp.zeros(tuple(of_shape), kept) for _, kept, of_shape in arrays]


def engine(
    rule,
    params,
    hyper,
    *,
    clip_value=None,
    clip_norm=None,
    nonfinite="propagate",
    after=None,
    clip_eps=0.0,
    states=None,
    rounding="nearest",
    **common,
):
    """Bind any rule of the registry to parameters, by its name."""
    made = rv._core.Engine(
        rule,
        params,
        lambda names: [0] * len(names),
        lambda p, dtype: zero_states(rule, p.shape, dtype, states=states),
        clip_value,
        clip_norm,
        nonfinite,
        after_rule(np.zeros, **(after or {})),
        clip_eps,
        states=states,
        rounding=rounding,
    )
    for name, value in {**hyper, **common}.items():
        made.set_hyper(0, name, value)
    return made


def assert_same_bits(got, expected, what=""):
    """Same dtype, shape and bits; any NaN equals any NaN."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape), what
    unsigned = f"u{got.dtype.itemsize}"
    got, expected = got.reshape(-1), expected.reshape(-1)
    same = (got.view(unsigned) == expected.view(unsigned)) | ((got != got) & (expected != expected))
    if not same.all():
        i = np.argmin(same)
        raise AssertionError(f"{what}: {np.sum(~same)} differ, first number {i}: {got[i]!r}, expected {expected[i]!r}")


@pytest.fixture(autouse=True)
def _settings_as_before():
    threads, instructions = rv.num_threads(), rv._core.simd_level()
    yield
    rv._core.disturb_environment(False)
    rv.set_num_threads(threads)
    rv._core.set_simd(instructions)


def a_device(patch):
    """A device for CuPy arrays: the GPU with RAVINE_GPU=1, else this machine's processor running the same kernels."""
    if os.environ.get("RAVINE_GPU"):
        return cuda.backend(0).device
    device = HostDevice(sanitize=bool(os.environ.get("RAVINE_SANITIZE")))
    patch.setitem(sys.modules, "cupy", device.xp)
    patch.setitem(cuda._backends, 0, cuda.Backend(device))
    return device


@pytest.fixture
def gpu_device(monkeypatch):
    """The device of CuPy arrays, see `a_device`."""
    return a_device(monkeypatch)


@pytest.fixture
def gpu(gpu_device):
    """The array library of that device: CuPy, or what stands in for it."""
    return gpu_device.xp


class JaxLike:
    """What JAX gives by default: a read-only float32 array, whose own conversion to float64 warns and is none."""

    def __init__(self, x):
        self.array = np.array(x, np.float32)
        self.array.flags.writeable = False
        self.dtype, self.shape, self.size, self.ndim = (
            self.array.dtype,
            self.array.shape,
            self.array.size,
            self.array.ndim,
        )

    def __array__(self, dtype=None, copy=None):
        return np.array(self.array, dtype) if copy or dtype not in (None, np.float32) else self.array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return (1, 0)

    def __float__(self):
        return float(self.array)

    def __len__(self):
        return len(self.array)

    def __getitem__(self, index):
        return JaxLike(self.array[index])

    def reshape(self, *shape):
        return JaxLike(self.array.reshape(*shape))

    def astype(self, dtype):
        if np.dtype(dtype) == np.float64:
            warnings.warn("Explicitly requested dtype float64 is not available, and will be truncated", stacklevel=2)
        return JaxLike(self.array)


class WithArray:
    """A library's array that has nothing but ``__array__``."""

    def __init__(self, x):
        self.array = JaxLike(x)
        self.dtype, self.shape = self.array.dtype, self.array.shape

    def __array__(self, dtype=None, copy=None):
        return self.array.__array__(dtype, copy)
