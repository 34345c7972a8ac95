"""CuPy arrays: the CUDA kernels. The only `import cupy`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np

from ravine import _core
from ravine.cuda import norm, onebit, rows, step
from ravine.cuda.device import Device, Kernel, alone

__all__ = ["Backend", "CupyDevice", "backend", "backend_on", "from_dlpack", "on_stream"]


class _Kernels(dict[str, Kernel]):
    """Kernels by name, made when they are asked for."""

    def __init__(self, make: Callable[[str], Kernel]) -> None:
        self._make = make

    def __missing__(self, name: str) -> Kernel:
        kernel = self[name] = self._make(name)
        return kernel


class CupyDevice:
    """A GPU, through CuPy."""

    def __init__(self, number: int) -> None:
        import cupy

        self.xp, self._number = cupy, number
        device = cupy.cuda.Device(number)
        self.multiprocessors: int = device.attributes["MultiProcessorCount"]
        self._arch = int(device.compute_capability)
        self._loaded: dict[str, Mapping[str, Kernel]] = {}

    def here(self) -> AbstractContextManager[Any]:
        """Make it CuPy's current device."""
        device: AbstractContextManager[Any] = self.xp.cuda.Device(self._number)
        return device

    def load(self, source: str) -> Mapping[str, Kernel]:
        """Give a text's kernels: each is compiled when it is first asked for, or comes from the user's cache."""
        if source not in self._loaded:
            self._loaded[source] = _Kernels(partial(self._load, source))
        return self._loaded[source]

    def _load(self, source: str, name: str) -> Kernel:
        from ravine.cuda import compiler  # not above: 7 of 34 ms of `import ravine`

        with self.here():
            # Not RawModule: CuPy adds -ftz=true to all that it compiles.
            module = self.xp.cuda.function.Module()
            module.load(compiler.cubin(alone(source, name), self._arch))
            return module.get_function(name)

    def launch(self, kernel: Kernel, blocks: int, threads: int, args: np.ndarray[Any, Any]) -> None:
        """Queue a kernel on the current stream."""
        with self.here():
            kernel((blocks,), (threads,), (args,))

    def capturing(self) -> bool:
        """Whether the current stream records a graph."""
        with self.here():
            capturing: bool = self.xp.cuda.get_current_stream().is_capturing()
        return capturing

    def enter_stream(self, last: Any) -> Any:
        """Make the current stream wait for what is queued on ``last``; return the current one."""
        with self.here():
            stream = self.xp.cuda.get_current_stream()
            # A recording stream must not wait for one that is not recorded.
            if last is not None and last.ptr != stream.ptr and not stream.is_capturing():
                stream.wait_event(last.record())
        return stream


class Backend:
    """What `ravine.backends.cpu` has, on one device."""

    #: Elements that array code works on at a time: enough to fill a GPU, in few launches.
    AT_ONCE = 1 << 24

    def __init__(self, device: Device) -> None:
        self.device = device
        self.Engine = self._here(step.Engine)
        self.apply = self._here(step.apply)
        self.global_norm = self._here(step.global_norm)
        self.tensor_norms = self._here(step.tensor_norms)
        self.clip_by_global_norm = self._here(step.clip_by_global_norm)
        self.loss_scale = self._here(step.LossScale)
        self.adaptive_clip = self._here(step.adaptive_clip)
        self.batch_norm = self._here(norm.batch_norm, _core.check_batch_norm)
        self.batch_norm_backward = self._here(norm.batch_norm_backward, _core.check_batch_norm_backward)
        self.layer_norm = self._here(norm.layer_norm, _core.check_layer_norm)
        self.layer_norm_backward = self._here(norm.layer_norm_backward, _core.check_layer_norm_backward)
        self.sum_rows = self._here(rows.sum_rows)
        self.onebit_encode = self._here(onebit.encode)
        self.onebit_decode = self._here(onebit.decode)

    def _here(self, operation: Callable[..., Any], check: Callable[..., None] | None = None) -> Callable[..., Any]:
        def call(*args: Any, **room: Any) -> Any:
            if check:
                check(*args)
            with self.device.here():
                return operation(self.device, *args, **room)

        return call

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return a new array of whatever its memory holds."""
        with self.device.here():
            return self.device.xp.empty(shape, dtype)

    def put(self, x: Any) -> Any:
        """Return an array with x's elements here: x itself, unless it is NumPy's or on another device."""
        with self.device.here():
            return self.device.xp.asarray(x)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Any:
        """Return a new state array."""
        with self.device.here():
            return self.device.xp.zeros(shape, dtype)

    def shelf(self, number: int) -> Callable[[tuple[int, ...], str], Any]:
        """Return `zeros`: CuPy's own arrays stand close."""
        return self.zeros

    def assign(self, array: Any, value: Any) -> None:
        """Overwrite an array's elements by those of an array here, or of NumPy's."""
        with self.device.here():
            array[...] = self.put(value)

    def copy_counters(self, to: step.Engine, source: step.Engine) -> None:
        """Set counts of steps and updates, and products, to those of another engine, without waiting for either."""
        with self.device.here():
            to.copy_counters(source)

    def capturing(self) -> bool:
        """Whether what is called now is recorded instead of done."""
        return self.device.capturing()


_backends: dict[int, Backend] = {}


def backend(number: int) -> Backend:
    """Return the backend of the GPU of that number."""
    if number not in _backends:
        _backends[number] = Backend(CupyDevice(number))
    return _backends[number]


def backend_on(device: str) -> Backend:
    """Return the backend of ``"cuda"``, CuPy's current GPU, or of ``"cuda:1"``, GPU 1."""
    try:
        import cupy
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"device {device!r} needs CuPy, which is not installed: pip install ravine[cuda]"
        ) from error
    try:
        return backend(int(device[5:]) if device[5:] else cupy.cuda.Device().id)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise ValueError(f"device: expected a GPU that CuPy can use, got {device!r}: {error}") from error


def from_dlpack(x: Any) -> Any:
    """Return CuPy's array over the memory of another library's, which waits for what is pending on its stream."""
    try:
        import cupy
    except ModuleNotFoundError as error:
        raise TypeError("it is on a GPU, which needs CuPy: pip install ravine[cuda]") from error
    return cupy.from_dlpack(x)


def on_stream(pointer: int, number: int) -> AbstractContextManager[Any]:
    """Make another library's stream on the GPU of that number CuPy's current one."""
    import cupy

    stream: AbstractContextManager[Any] = cupy.cuda.ExternalStream(pointer, number)
    return stream
