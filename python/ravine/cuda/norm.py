"""Batch norm and layer norm on a device: `ravine._core`'s functions, with the device in front, and its bits.

The arguments have been checked: x, dy and the array that is written are contiguous and alike, the small vectors fit and
may have any strides, all lie on the device. Work space is kept per device and used again, by one call after the other;
what a call returns, or is given to write, is all that it makes anew.

Launches: one where a block of threads can hold a channel or a sample (up to 32768 elements), two or three where
several share it or the channels are last; dα and dβ of layer norm take one more, two where one number serves all units.
"""

from __future__ import annotations

from math import gcd, prod
from struct import Struct
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from ravine.cuda.device import Array, Device, Kernel, source

__all__ = ["batch_norm", "batch_norm_backward", "layer_norm", "layer_norm_backward"]

# These are norm.cu's and tree.cu's.
_THREADS, _WARPS, _WARP, _BLOCK = 256, 8, 32, 4096
_VECTORS = ("weight", "bias", "running_mean", "running_var", "dweight", "dbias", "mean", "inv_std")
_ARGS = np.dtype(
    [(name, "u8") for name in ("x", "dy", "out")]
    + [(name + part, kind) for name in _VECTORS for part, kind in (("", "u8"), ("_step", "i8"))]
    + [(name, "u8") for name in ("totals", "sums", "tickets", "coefficients")]
    + [("eps", "f8"), ("momentum", "f8")]
    + [(name, "u8") for name in ("training", "relu", "channels", "count", "inner", "stride", "span", "groups")]
    + [(name, "u8") for name in ("elements", "wide", "threads", "jump_channels", "jump_rest")]
)
_ABSENT: dict[str, float] = dict.fromkeys(_ARGS.names or (), 0)
# Several times as fast as one assignment a field.
_PACK = Struct("=" + "".join({"u": "Q", "i": "q", "f": "d"}[_ARGS[name].kind] for name in _ABSENT)).pack


class _Space:
    """A device's kernels and work space."""

    def __init__(self) -> None:
        self._kernels: dict[str, Any] = {}
        self._arrays: dict[str, list[Array]] = {}
        self._last: Any = None

    def enter(self, device: Device) -> None:
        """Make the current stream wait for the one that used the work space last."""
        self._last = device.enter_stream(self._last)

    def kernel(self, device: Device, real: str, name: str) -> Kernel:
        if real not in self._kernels:
            self._kernels[real] = device.load(source("tree", "norm", REAL=real))
        return self._kernels[real][name]

    def pointer(self, device: Device, name: str, size: int, dtype: str) -> int:
        """Where ``size`` numbers are, zeros at first; they grow only, and a graph may still use those of before."""
        arrays = self._arrays.setdefault(name, [])
        if not arrays or arrays[-1].size < size:
            arrays.append(device.xp.zeros(max(size, 2 * arrays[-1].size if arrays else 256), dtype))
        return int(arrays[-1].data.ptr)


_spaces: WeakKeyDictionary[Device, _Space] = WeakKeyDictionary()


class _Call:
    """One operation's arguments, and its launches."""

    def __init__(self, device: Device, x: Array, out: Array, dy: Array | None = None) -> None:
        self.device, self.item = device, x.dtype.itemsize
        self.real = "float" if self.item == 4 else "double"
        self.space = _spaces.get(device) or _spaces.setdefault(device, _Space())
        self.space.enter(device)
        self.pointers = [x.data.ptr, out.data.ptr] + ([] if dy is None else [dy.data.ptr])
        self.args = _ABSENT.copy()
        self.copies: list[Array] = []
        self.set(x=self.pointers[0], out=self.pointers[1], dy=0 if dy is None else self.pointers[2], elements=x.size)

    def set(self, **fields: float) -> None:
        self.args.update(fields)

    def vectors(self, **vectors: Array | None) -> None:
        """Give the vectors' places and steps; None is absent, and one element serves all."""
        for name, vector in vectors.items():
            if vector is not None:
                step = _step(vector)
                if step is None:
                    vector, step = self.device.xp.ascontiguousarray(vector), 1
                    self.copies.append(vector)
                self.args[name], self.args[f"{name}_step"] = vector.data.ptr, step

    def launch(self, name: str, blocks: int) -> None:
        if blocks:
            kernel = self.space.kernel(self.device, self.real, name)
            args = np.frombuffer(_PACK(*self.args.values()), _ARGS)
            self.device.launch(kernel, blocks, _THREADS, args)

    def aligned(self, size: int) -> bool:
        return all(pointer % size == 0 for pointer in self.pointers)

    def work_space(self, sums: int, tickets: int, coefficients: int) -> None:
        pointer = self.space.pointer
        if tickets:
            self.set(sums=pointer(self.device, "sums", sums, "f8"))
            self.set(tickets=pointer(self.device, "tickets", tickets, "u4"))
        if coefficients:
            self.set(coefficients=pointer(self.device, "coefficients", coefficients * self.item, "f8"))

    def sequences(self, channels: int, count: int, inner: int) -> int:
        """Share the channels of (outer, channels, inner) among blocks of threads; return how many blocks."""
        blocks = -(-count // _BLOCK)
        span = min(_WARPS, _power_of_two(blocks))
        groups = max(1, -(-blocks // _WARPS))
        self.set(channels=channels, count=count, inner=inner, stride=channels * inner, span=span, groups=groups)
        self.set(wide=inner % 2 == 0 and self.aligned(2 * self.item))
        several = groups > 1
        self.work_space(2 * channels * groups * several, channels * several, channels * several)
        return channels * groups if several else -(-channels // (_WARPS // span))

    def columns(self, channels: int, count: int) -> int:
        """Share the columns of (rows, channels) among blocks of threads; return how many blocks."""
        span = min(_WARP, _power_of_two(channels))
        tiles, groups = -(-channels // span), max(1, -(-count // (_BLOCK * _WARP // span)))
        self.set(channels=channels, count=count, span=span, groups=groups)
        several = groups > 1
        self.work_space(2 * tiles * span * groups * several, tiles * several, channels)
        return tiles * groups

    def flat(self, elements: int, channels: int, inner: int) -> int:
        """Share all elements among threads, ``inner`` 0 where the channels are last; return how many blocks."""
        if not elements:
            return 0
        wide = self.aligned(16)
        width = 16 // self.item if wide else 1
        # As many threads as can run at the same time; then up to four accesses each, before there are more of them.
        full, pieces = self.device.multiprocessors * 1024, max(1, elements // width)
        threads = max(min(pieces, full), min(-(-pieces // 4), 4 * full))
        if inner:
            threads = -(-threads // _THREADS) * _THREADS
            segments, rest = divmod(threads * width, inner)
            self.set(jump_channels=segments % channels, jump_rest=rest)
        else:
            period = channels // gcd(channels, width)
            threads = -(-threads // period) * period
        self.set(wide=wide, threads=threads, channels=channels, inner=inner)
        return -(-threads // _THREADS)


def _power_of_two(n: int) -> int:
    """Give the next power of two, at least 1."""
    return 1 << max(0, n - 1).bit_length()


def _step(vector: Array) -> int | None:
    """Give how many elements lie between neighbours in C order, None where that varies."""
    item = vector.dtype.itemsize
    if len(vector.shape) == 1 and vector.strides[0] % item == 0:
        return int(vector.strides[0] // item) if vector.size > 1 else 0
    step, expected = 0, None
    for length, stride in zip(reversed(vector.shape), reversed(vector.strides), strict=True):
        if length == 1:
            continue
        if expected is None:
            step = stride
        elif stride != expected:
            return None
        expected = stride * length
    return step // item if step % item == 0 else None


def _layout(shape: tuple[int, ...], axis: int) -> tuple[int, int, int]:
    """Give channels, elements of each, and the segments' length, 0 where the channels are last."""
    channels, outer, inner = shape[axis], prod(shape[:axis]), prod(shape[axis + 1 :])
    return (channels, outer, 0) if axis + 1 == len(shape) else (channels, outer * inner, inner)


def _statistics(device: Device, n: int, given: tuple[Array, Array] | None) -> tuple[Array, Array]:
    return given or (device.xp.empty(n, np.float64), device.xp.empty(n, np.float64))


def batch_norm(
    device: Device,
    x: Array,
    axis: int,
    weight: Array | None,
    bias: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    training: bool,
    momentum: float,
    eps: float,
    out: Array,
    relu: bool = False,
    *,
    statistics: tuple[Array, Array] | None = None,
) -> tuple[Array, Array]:
    """Write y, with ``relu`` not below 0; give (μ, 1/√(σ² + ε)) of each channel, in ``statistics`` if given."""
    channels, count, inner = _layout(x.shape, axis)
    last = axis + 1 == len(x.shape)
    mean, inv_std = statistics = _statistics(device, channels, statistics)
    call = _Call(device, x, out)
    call.vectors(weight=weight, bias=bias, running_mean=running_mean, running_var=running_var)
    call.vectors(mean=mean, inv_std=inv_std)
    call.set(training=training, momentum=momentum, eps=eps, relu=relu)
    if not training:
        call.work_space(0, 0, channels)
        call.set(channels=channels)
        call.launch("running_statistics", -(-channels // _THREADS))
    elif last:
        blocks = call.columns(channels, count)
        call.launch("column_mean", blocks)
        call.launch("column_variance", blocks)
    else:
        blocks = call.sequences(channels, count, inner)
        if count <= _BLOCK * _WARPS:
            call.launch("batch_forward", blocks)
            return statistics
        call.launch("sequence_mean", blocks)
        call.launch("sequence_variance", blocks)
    call.launch("normalize_last" if last else "normalize_inside", call.flat(x.size, channels, inner))
    return statistics


def batch_norm_backward(
    device: Device,
    dy: Array,
    x: Array,
    axis: int,
    weight: Array | None,
    mean: Array,
    inv_std: Array,
    training: bool,
    dx: Array,
    dweight: Array,
    dbias: Array,
    relu: bool = False,
    bias: Array | None = None,
) -> None:
    """Write dx, dα and dβ; with ``relu``, dy counts where y > 0."""
    channels, count, inner = _layout(x.shape, axis)
    last = axis + 1 == len(x.shape)
    call = _Call(device, x, dx, dy)
    call.vectors(weight=weight, bias=bias, mean=mean, inv_std=inv_std, dweight=dweight, dbias=dbias)
    call.set(training=training, relu=relu)
    if last:
        call.launch("column_gradients", call.columns(channels, count))
    else:
        blocks = call.sequences(channels, count, inner)
        if count <= _BLOCK * _WARPS:
            call.launch("batch_backward", blocks)
            return
        call.launch("sequence_gradients", blocks)
    name = "differentiate" if training else "scale"
    call.launch(f"{name}_last" if last else f"{name}_inside", call.flat(x.size, channels, inner))


def layer_norm(
    device: Device,
    x: Array,
    axes: int,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    out: Array,
    *,
    statistics: tuple[Array, Array] | None = None,
) -> tuple[Array, Array]:
    """Write y; give (μ, 1/√(σ² + ε)) of each sample, in the arrays ``statistics`` if they are given."""
    rows, units = prod(x.shape[:-axes]), prod(x.shape[-axes:])
    mean, inv_std = statistics = _statistics(device, rows, statistics)
    call = _Call(device, x, out)
    call.vectors(weight=weight, bias=bias, mean=mean, inv_std=inv_std)
    call.set(eps=eps)
    blocks = call.sequences(rows, units, units)
    if units <= _BLOCK * _WARPS:
        call.launch("layer_forward", blocks)
        return statistics
    call.launch("sequence_mean", blocks)
    call.launch("layer_variance", blocks)
    call.launch("layer_normalize", call.flat(x.size, rows, units))
    return statistics


def layer_norm_backward(
    device: Device,
    dy: Array,
    x: Array,
    axes: int,
    weight: Array | None,
    mean: Array,
    inv_std: Array,
    dx: Array,
    dweight: Array,
    dbias: Array,
) -> None:
    """Write dx, dα and dβ; these have one element if all units share them."""
    rows, units = prod(x.shape[:-axes]), prod(x.shape[-axes:])
    call = _Call(device, x, dx, dy)
    call.vectors(weight=weight, mean=mean, inv_std=inv_std)
    blocks = call.sequences(rows, units, units)
    if units <= _BLOCK * _WARPS:
        call.launch("layer_backward", blocks)
    else:
        call.launch("layer_gradients", blocks)
        call.launch("layer_differentiate", call.flat(x.size, rows, units))
    # One element for all units has to be summed over these, too.
    arrays = {"dweight": dweight, "dbias": dbias}
    shared = {name: array for name, array in arrays.items() if array.size != units}
    own = {name: array for name, array in arrays.items() if array.size == units}
    # A kernel cannot write where no single step leads from unit to unit.
    scattered = {name: array for name, array in own.items() if _step(array) is None}
    own |= {name: device.xp.empty(units, array.dtype) for name, array in scattered.items()}
    call.vectors(**own)
    if shared:
        call.set(totals=call.space.pointer(device, "totals", 2 * units, "f8"))
    call.launch("layer_units", call.columns(units, rows))
    for name, array in scattered.items():
        array[...] = own[name].reshape(array.shape)
    if shared:
        call.set(dweight=0, dbias=0)
        call.vectors(**shared)
        call.launch("layer_shared", call.sequences(2, units, units))
