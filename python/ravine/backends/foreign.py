"""Arrays of other libraries, as NumPy's or CuPy's over the same memory. Imports none of those libraries."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from ravine.backends import cuda

__all__ = ["adopt", "as_array", "gpu_of"]

#: DLPack's numbers for memory that the CPU reads: its own, and such that a GPU has pinned.
_HOST = (1, 3, 11)
#: And for that of an NVIDIA GPU: its own, and managed.
_CUDA = (2, 13)


def gpu_of(x: Any) -> int | None:
    """Return the number of the NVIDIA GPU that holds another library's array; None of whatever is not there."""
    try:
        kind, number = x.__dlpack_device__()
    except Exception:  # no array, or one that `adopt` will refuse, with its name
        return None
    return int(number) if kind in _CUDA else None


def adopt(x: Any, name: str, written: bool) -> Any:
    """Return NumPy's or CuPy's array over the memory of x, without a copy; what is no array comes back as it is.

    Args:
        x: whatever speaks DLPack, the buffer protocol, or NumPy's array interface; NumPy's scalars, if only read.
        name: what to call it in errors.
        written: whether it will be written: then a read-only one is refused. So is, by NumPy before 2.1, whatever comes
            by DLPack on the CPU, torch's tensors excepted.

    Raises:
        TypeError: an array that cannot be shared: sparse, quantised, a complex tensor of torch's, on a device that is
            no NVIDIA GPU.
        ValueError: one that must not be written.

    >>> from array import array
    >>> from ravine.backends.foreign import adopt
    >>> x = array("f", [1.0, 2.0]); adopt(x, "x", True)[0] = 5; x
    array('f', [5.0, 2.0])
    """
    if isinstance(x, np.ndarray):  # quick: nearly always
        return x
    if isinstance(x, np.generic) and not written and not isinstance(x, np.character):
        return np.asarray(x)  # what NumPy makes of a result without axes
    torch = sys.modules.get("torch")
    tensor = torch is not None and isinstance(x, torch.Tensor)
    if not tensor and (type(x).__module__.partition(".")[0] == "cupy" or isinstance(x, np.generic | str | bytes)):
        return x
    try:
        if tensor:
            array = _of_torch(torch, x)
        elif hasattr(x, "__dlpack_device__"):
            array = _of_dlpack(x)
        else:
            array = _of_buffer(x)
    except (BufferError, RuntimeError, ValueError, TypeError) as error:
        raise TypeError(f"{name}: cannot share the memory of a {_kind(x)}: {error}") from error
    if array is None:
        return x
    if written and not _may_be_written(x, array):
        raise ValueError(f"{name}: a {_kind(x)} that is read-only; pass a writable copy: np.array(x)")
    return array


def as_array(x: Any, dtype: Any) -> Any:
    """Return a Python number as an array of no axes, in the dtype of what it stands beside; all else as it is."""
    return np.asarray(x, dtype) if type(x) in (float, int, complex) else x


def _kind(x: Any) -> str:
    return f"{type(x).__module__}.{type(x).__qualname__}".removeprefix("builtins.")


def _may_be_written(x: Any, array: Any) -> bool:
    if isinstance(array, np.ndarray):
        return array.flags.writeable
    # CuPy knows no read-only arrays: their own libraries do.
    jax = sys.modules.get("jax")
    interface = getattr(x, "__cuda_array_interface__", None)
    return not (jax is not None and isinstance(x, jax.Array)) and not (interface and interface["data"][1])


def _of_buffer(x: Any) -> Any:
    if hasattr(x, "__array_interface__"):
        return np.asarray(x)
    try:
        return np.asarray(memoryview(x))
    except TypeError:  # no buffer
        return None


def _of_dlpack(x: Any) -> Any:
    kind, _ = x.__dlpack_device__()
    if kind in _CUDA:
        return cuda.from_dlpack(x)
    if kind not in _HOST:
        raise TypeError(f"it is on a device of kind {kind!r}; copy it to the CPU or an NVIDIA GPU")
    try:
        return np.from_dlpack(x)
    except RuntimeError:
        # NumPy's DLPack knows no bfloat16. JAX gives it to NumPy all the same, as a view that nobody may write.
        array = np.asarray(x)
        if array.dtype.name != "bfloat16" or array.flags.writeable or array.flags.owndata:
            raise
        return array


def _of_torch(torch: Any, x: Any) -> Any:
    if x.layout is not torch.strided or x.dtype.is_complex or x.is_neg():
        # The last is a view of a complex tensor's memory, whose numbers are there with the other sign.
        cure = "torch.view_as_real(x)" if x.dtype.is_complex else "x.to_dense(), or x + 0"
        raise TypeError(f"expected a dense real tensor, got {x.dtype} of {x.layout}; pass {cure}")
    bfloat16 = x.dtype is torch.bfloat16
    x = x.detach().view(torch.int16) if bfloat16 else x.detach()
    if x.device.type == "cuda":
        with torch.cuda.device(x.device):
            array = cuda.from_dlpack(x)
    elif x.device.type == "cpu":
        # Its own way to NumPy, zero-copy as well: half as long as DLPack, and writable under NumPy < 2.1, too.
        array = x.numpy()
    else:
        raise TypeError(f"it is on device {x.device}; copy it to the CPU or an NVIDIA GPU")
    return _as_bfloat16(array) if bfloat16 else array


def _as_bfloat16(array: Any) -> Any:
    try:
        from ml_dtypes import bfloat16
    except ModuleNotFoundError as error:
        raise TypeError("bfloat16 needs ml_dtypes: pip install ravine[bf16]") from error
    return array.view(bfloat16)
