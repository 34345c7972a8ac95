"""What all layers share: gradients that count their backwards, reused room, state and copies."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Mapping
from typing import Any, Self, TypeAlias

import numpy as np

from ravine import _core
from ravine.backends import backend_of, is_array

__all__ = ["Gradients", "Stateful"]

Array: TypeAlias = Any


class Gradients(dict[str, Any]):
    """A layer's gradients by parameter name, None before the first backward.

    ``backward_count`` says how many backwards have filled them. An optimizer refuses gradients that it has used
    already; ``dict(grads)``, which has no count, it takes as they are.

    >>> layer = rv.nn.Linear(2, 1, 0)
    >>> layer.grads, layer.grads.backward_count
    ({'weight': None, 'bias': None}, 0)
    """

    backward_count = 0


def count_backward(grads: Any) -> None:
    """Count one more backward, if these gradients count them."""
    if isinstance(grads, Gradients):
        grads.backward_count += 1


class Kept:
    """What a forward keeps for backward."""

    __slots__ = ("taped", "value", "waiting")

    def __init__(self, value: Any, training: bool) -> None:
        self.value = value
        #: Whether it is of a training forward through which no backward has gone: an evaluation leaves it alone.
        self.waiting = training
        #: Whether a `Sequential` has it, too, and will put it back.
        self.taped = False


class Stateful:
    """The state of a layer: to be saved, loaded, copied and pickled, without what belongs to the last batch.

    A copy, by ``copy.copy`` too, has arrays of its own and goes on as the layer itself would.

    >>> import copy
    >>> layer = rv.nn.Linear(2, 1, 0); twin = copy.copy(layer)
    >>> twin.params["bias"][:] = 5; layer.params["bias"]
    array([0.], dtype=float32)
    """

    params: Any
    grads: Any
    _kept: Kept | None = None

    def __call__(self, x: Array, training: bool = True) -> Array:
        """Call ``forward``."""
        return self.forward(x, training)

    def forward(self, x: Array, training: bool = True) -> Array:
        """Give the layer's output for x."""
        raise NotImplementedError

    @property
    def kept(self) -> Kept | None:
        """What the last forward keeps for backward; None before any."""
        return self._kept

    @kept.setter
    def kept(self, kept: Kept | None) -> None:
        self._kept = kept

    def _keep(self, value: Any, training: bool) -> None:
        """Keep what backward needs, but no evaluation's while a training forward waits for its backward."""
        if training or self._kept is None or not self._kept.waiting:
            self._kept = Kept(value, training)

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the parameters and the buffers by name, as the optimizer calls them.

        >>> sorted(rv.BatchNorm(3).state_dict())
        ['bias', 'running_mean', 'running_var', 'weight']
        """
        return {name: array.copy() for name, array in arrays_of(self).items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Overwrite the parameters and the buffers, in place.

        Args:
            state: what ``state_dict`` returned; NumPy's or CuPy's arrays.

        Raises:
            ValueError: other names, shapes or dtypes, all of them listed. Nothing was loaded.

        >>> one, other = rv.nn.Linear(2, 1, 0), rv.nn.Linear(2, 1, 1)
        >>> other.load_state_dict(one.state_dict()); bool((other.params["weight"] == one.params["weight"]).all())
        True
        """
        load_arrays(arrays_of(self), state)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_kept", "_space")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({name: value for name, value in state.items() if name not in ("_kept", "_space")})

    def __copy__(self) -> Self:
        # Two layers over the same arrays would train each other.
        return copy.deepcopy(self)


def arrays_of(layer: Any) -> dict[str, Array]:
    """Return a layer's parameters and buffers by name.

    Raises:
        ValueError: a parameter and a buffer of the same name.
    """
    arrays = dict(_core.flatten(layer.params)) if layer.params else {}
    buffers = getattr(layer, "buffers", None)
    found = dict(_core.flatten(buffers)) if buffers else {}
    if twice := arrays.keys() & found.keys():
        raise ValueError(f"{type(layer).__name__}: params and buffers both have {sorted(twice)}; rename one")
    return arrays | found


def load_arrays(arrays: Mapping[str, Array], state: Mapping[str, Any]) -> None:
    """Overwrite arrays by others of the same names, shapes and dtypes.

    Raises:
        ValueError: whatever differs. Nothing was loaded.
    """
    wrong = [f"missing {name}" for name in arrays if name not in state]
    wrong += [f"unknown {name}" for name in state if name not in arrays]
    for name, array in arrays.items():
        if name not in state:
            continue
        value = state[name]
        if not is_array(value):
            wrong.append(f"{name}: expected an array, got {type(value).__name__}")
        elif value.shape != array.shape or value.dtype != array.dtype:
            got = f"{value.dtype} of shape {value.shape}"
            wrong.append(f"{name}: expected {array.dtype} of shape {array.shape}, got {got}")
    if wrong:
        raise ValueError(f"state: {'; '.join(wrong)}. Nothing was loaded.")
    for name, array in arrays.items():
        backend_of(array).assign(array, state[name])


class WorkSpace:
    """Results that are made once per shape and used again as soon as nobody holds them."""

    def __init__(self) -> None:
        self._arrays: dict[str, list[Array]] = {}

    def array(self, name: str, x: Array) -> Array:
        """Give an array like x that nobody else holds: that of an earlier call of this name, or a new one."""
        return self._free(name, x, x.shape, x.dtype) if is_array(x) else None

    def _free(self, name: str, x: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        arrays, backend = self._arrays.setdefault(name, []), backend_of(x)
        for i in range(len(arrays)):
            # A view, a layer that keeps it as its input, the caller's variable: each is a reference more.
            free = sys.getrefcount(arrays[i]) <= _REFERENCES
            if free and arrays[i].shape == shape and arrays[i].dtype == dtype and backend_of(arrays[i]) is backend:
                return arrays[i]
        # Two, so that a loop that holds the last result while it asks for the next makes no array for each.
        self._arrays[name] = [*arrays[-1:], new := backend.empty(shape, dtype)]
        return new

    def statistics(self, x: Array, shape: tuple[int, ...]) -> dict[str, Any]:
        """Tell a device where means and deviations of this shape go: a captured call must make no arrays.

        Nothing for the CPU.
        """
        if isinstance(x, np.ndarray) or not is_array(x):
            return {}
        n = (math.prod(shape),)
        for name in ("mean", "inv_std"):
            if name not in self._arrays:
                # What the last forward keeps is held when the next one asks.
                self._arrays[name] = [backend_of(x).empty(n, np.dtype(np.float64)) for _ in range(2)]
        return {"statistics": tuple(self._free(name, x, n, np.dtype(np.float64)) for name in ("mean", "inv_std"))}


def _references() -> int:
    """Count the references to an array that only a list holds, as the list's user sees them."""
    arrays = [np.empty(0)]
    return next(sys.getrefcount(arrays[i]) for i in range(len(arrays)))


_REFERENCES = _references()
