"""Norms of gradients, and clipping by them, for people with a loop of their own."""

from __future__ import annotations

import math
from typing import Any

from ravine import _core
from ravine.backends import backend_for, cpu
from ravine.backends.foreign import adopt

__all__ = ["clip_by_global_norm_", "global_norm", "tensor_norms"]


def global_norm(tree: Any) -> Any:
    r"""Return the Euclidean norm of all elements of all arrays together.

    .. math:: \|g\| = \sqrt{\sum_k \sum_i g_{k,i}^2}

    Squares and sums are float64, so float32 cannot overflow, and are added in one order, by the canonical tree: the
    bits depend neither on threads nor on the instruction set nor on strides.

    Args:
        tree: array, or any nesting of dict, list and tuple of arrays; None counts as nothing.

    Returns:
        A float; of CuPy arrays, an array without axes that stays on the GPU.

    Raises:
        TypeError: a leaf that is not a float array, named by its path.

    >>> rv.global_norm({"w": np.array([3.0]), "b": np.array([[4.0]])})
    5.0
    """
    return backend_for(tree).global_norm(_leaves(tree, False))


def tensor_norms(tree: Any) -> dict[str, Any]:
    r"""Return the Euclidean norm of each array, by dotted name: those that `global_norm` combines, bit for bit.

    .. math:: \|g_k\| = \sqrt{\sum_i g_{k,i}^2}

    Args:
        tree: array, or any nesting of dict, list and tuple of arrays; None is left out.

    Returns:
        Floats; of CuPy arrays, arrays without axes that stay on the GPU.

    Raises:
        TypeError: a leaf that is not a float array, named by its path.

    >>> rv.tensor_norms({"w": np.array([3.0, 4.0]), "b": [np.array([2.0]), None]})
    {'w': 5.0, 'b.0': 2.0}
    """
    backend, leaves = backend_for(tree), [(name, leaf) for name, leaf in _leaves(tree, False) if leaf is not None]
    norms = backend.tensor_norms(leaves)
    values = norms.tolist() if backend is cpu else [norms[i] for i in range(len(leaves))]
    return {name: value for (name, _), value in zip(leaves, values, strict=True)}


def clip_by_global_norm_(tree: Any, max_norm: float) -> Any:
    r"""Scale all arrays in place so that their global norm is at most ``max_norm``; return the norm before.

    .. math:: g \leftarrow g\, s, \qquad s = 1 \text{ if } \|g\| \le c, \text{ else } c / \|g\|

    s is float64, rounded once to the arrays' dtype. A NaN norm makes everything NaN; an infinite one makes infinite
    elements NaN and the others 0. The norm afterwards may exceed c by a few units in the last place.

    Args:
        tree: array, or any nesting of dict, list and tuple of writable arrays.
        max_norm: c > 0.

    Returns:
        The norm before, as `global_norm` does.

    Raises:
        ValueError: max_norm not a finite number above 0; a read-only array; two that share memory. Nothing was changed.
        TypeError: a leaf that is not a float array, named by its path.

    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", 2013, Algorithm 1.

    >>> g = {"w": np.array([3.0]), "b": np.array([4.0])}
    >>> rv.clip_by_global_norm_(g, 2.5), g["w"], g["b"]
    (5.0, array([1.5]), array([2.]))
    """
    if not 0.0 < max_norm < math.inf:
        raise ValueError(f"max_norm: expected a finite number > 0, got {max_norm!r}")
    return backend_for(tree).clip_by_global_norm(_leaves(tree, True), max_norm)


def _leaves(tree: Any, written: bool) -> list[tuple[str, Any]]:
    return [(name, adopt(leaf, name, written)) for name, leaf in _core.flatten(tree)]
