"""Nestings of dict, list and tuple: what parameters and gradients come in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ravine import _core

__all__ = ["leaves", "map"]


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
