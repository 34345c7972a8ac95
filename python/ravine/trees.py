"""Nestings of dict, list and tuple: what parameters and gradients come in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ravine import _core
from ravine.backends import backend_on, is_array

__all__ = ["Buffered", "buffered", "leaves", "map", "to_device", "to_host"]


class Buffered(dict[str, Any]):
    """The parameters of a layer that has buffers, too: arrays that training changes without gradients.

    A dict, but for `buffered`: where a checkpoint was saved without the layer, ``opt.load`` says so.

    >>> rv.trees.buffered({"norm": rv.trees.Buffered(weight=np.ones(2)), "out": {"w": np.ones(2)}})
    ['norm']
    """


def buffered(tree: Any) -> list[str]:
    """Return the dotted names of the layers in a nesting that have buffers.

    >>> rv.trees.buffered([{"w": np.ones(2)}])
    []
    """

    def walk(node: Any, path: list[str]) -> list[str]:
        if isinstance(node, Buffered):
            return [".".join(path) or "params"] if node else []
        pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
        return [name for key, item in pairs for name in walk(item, [*path, str(key)])]

    return walk(tree, [])


def leaves(tree: Any) -> dict[str, Any]:
    """Return the leaves of a nesting by their dotted names; a leaf on its own is called ``params``.

    >>> rv.trees.leaves({"hidden": {"w": 1, "b": 2}, "out": [3, 4]})
    {'hidden.w': 1, 'hidden.b': 2, 'out.0': 3, 'out.1': 4}
    """
    return dict(_core.flatten(tree))


def map(f: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Return the same nesting with ``f(leaf, *leaves of the others)`` in each leaf's place.

    Raises:
        ValueError: another nesting.

    >>> rv.trees.map(lambda a, b: a + b, {"x": 1, "y": [2]}, {"x": 10, "y": [20]})
    {'x': 11, 'y': [22]}
    """
    if isinstance(tree, dict):
        if any(not isinstance(other, dict) or other.keys() != tree.keys() for other in others):
            raise ValueError(f"trees.map: expected dicts with the keys {list(tree)}, got another nesting")
        return {key: map(f, item, *(other[key] for other in others)) for key, item in tree.items()}
    if isinstance(tree, list | tuple):
        if any(not isinstance(other, list | tuple) or len(other) != len(tree) for other in others):
            raise ValueError(f"trees.map: expected lists or tuples of {len(tree)}, got another nesting")
        mapped = [map(f, *items) for items in zip(tree, *others, strict=True)]
        return type(tree)(*mapped) if hasattr(tree, "_fields") else type(tree)(mapped)  # a named tuple, or not
    return f(tree, *others)


def to_device(tree: Any, device: str) -> Any:
    """Return the same nesting with all arrays on a device, bit for bit.

    Those that are there already are not copied: they are the very arrays of ``tree``. None stays None.

    Args:
        tree: array (NumPy or CuPy, any dtype that CuPy has), or any nesting of dict, list and tuple of arrays.
        device: ``"cpu"`` for NumPy arrays, ``"cuda"`` for CuPy arrays on its current GPU, ``"cuda:1"`` for GPU 1.

    Raises:
        ValueError: another device string, or a GPU that CuPy cannot use.
        ModuleNotFoundError: CuPy is not installed; ``pip install ravine[cuda]``.
        TypeError: a leaf that is no array, or of a dtype that CuPy does not have, named by its path.

    >>> params = {"w": np.ones(2), "b": [None]}
    >>> rv.to_device(params, "cpu")
    {'w': array([1., 1.]), 'b': [None]}
    >>> rv.to_device(params, "cpu")["w"] is params["w"]
    True
    """
    backend, names = backend_on(device), (name for name, _ in _core.flatten(tree))

    def put(leaf: Any) -> Any:
        name = next(names)
        if leaf is None:
            return None
        if not is_array(leaf) or isinstance(leaf, np.ma.MaskedArray):
            raise TypeError(f"{name}: expected a NumPy or CuPy array, got {type(leaf).__name__}; pass np.asarray(…)")
        try:
            return backend.put(leaf)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{name}: CuPy has no {leaf.dtype} for device {device!r}: {error}; convert it with x.astype(np.float32)"
            ) from error

    return map(put, tree)


def to_host(tree: Any) -> Any:
    """Return the same nesting with all arrays NumPy's: `to_device` of ``"cpu"``, which waits for what computes them.

    >>> rv.to_host((np.ones(2), None))
    (array([1., 1.]), None)
    """
    return to_device(tree, "cpu")
