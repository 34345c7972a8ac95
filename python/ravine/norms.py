"""Norms of gradients, and clipping by them, for people with a loop of their own."""

from __future__ import annotations

import math
import operator
from typing import Any

from ravine import _core
from ravine.backends import backend_for, cpu
from ravine.backends.foreign import adopt

__all__ = ["adaptive_clip_", "clip_by_global_norm_", "global_norm", "tensor_norms"]


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
        max_norm: c > 0; infinity only measures, and writes nothing.

    Returns:
        The norm before, as `global_norm` does.

    Raises:
        ValueError: max_norm not above 0; a read-only array; two that share memory. Nothing was changed.
        TypeError: a leaf that is not a float array, named by its path.

    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", 2013, Algorithm 1.

    >>> g = {"w": np.array([3.0]), "b": np.array([4.0])}
    >>> rv.clip_by_global_norm_(g, 2.5), g["w"], g["b"]
    (5.0, array([1.5]), array([2.]))
    """
    if not max_norm > 0.0:
        raise ValueError(f"max_norm: expected a number > 0, infinity to measure only, got {max_norm!r}")
    return backend_for(tree).clip_by_global_norm(_leaves(tree, True), max_norm)


def adaptive_clip_(params: Any, grads: Any, clipping: float = 0.01, eps: float = 1e-3, *, axis: int = -1) -> None:
    r"""Scale each unit of the gradients in place whose norm is large beside that of the unit's own parameters.

    .. math:: g_i \leftarrow g_i\, \frac{c \max(\|w_i\|, \epsilon)}{\|g_i\|} \text{ where }
        \|g_i\| > c \max(\|w_i\|, \epsilon)

    A unit i is what leads to one output: of arrays with two axes or more, the elements at one index of ``axis``; other
    arrays are one unit. Call it before ``step``. The paper leaves the last linear layer out: so pass parts of the
    nestings, or None in place of a gradient.

    The factor is float64, rounded once to the array's dtype; norms are float64 sums by the canonical tree, of each unit
    as of an array of its own, so that the bits depend neither on threads nor on strides. A NaN among a unit makes the
    unit's gradient NaN.

    Args:
        params: array, or any nesting of dict, list and tuple of arrays; only read.
        grads: arrays in the same nesting, of their shapes, float of any width, writable; None is left out.
        clipping: c > 0 (0.01).
        eps: ε > 0 (1e-3), the least norm that a unit's parameters count with: else those that are 0 would stay there.
        axis: the axis of outputs: -1 for (n_in, n_out) and (height, width, n_in, n_out), as in `ravine.nn` and JAX; 0
            for torch's (n_out, n_in, ...).

    Raises:
        ValueError: a value out of range; another nesting or another shape; an axis that an array does not have; a
            gradient that is read-only or shares memory. Nothing was changed.
        TypeError: a leaf that is not a float array, named by its path.

    Source: Brock, De, Smith and Simonyan, "High-Performance Large-Scale Image Recognition Without Normalization", 2021,
    equation 3.

    >>> w, g = np.array([[3.0, 0.3], [4.0, 0.4]]), np.array([[0.0, 0.0], [2.0, 2.0]])
    >>> rv.adaptive_clip_(w, g, clipping=0.5); g  # columns of norms 5 and 0.5: at most 2.5 and 0.25
    array([[0.  , 0.  ],
           [2.  , 0.25]])
    """
    for name, value in (("clipping", clipping), ("eps", eps)):
        if not 0.0 < value < math.inf:
            raise ValueError(f"{name}: expected a finite number > 0, got {value!r}")
    known, given = _core.flatten(params), _core.flatten(grads)
    if (names := [name for name, _ in known]) != (got := [name for name, _ in given]):
        missing, extra = [n for n in names if n not in got], [n for n in got if n not in names]
        raise ValueError(
            f"grads: expected the same nesting as params, got missing {missing}, unknown {extra}, or another order"
        )
    both = [
        (_called("params", name, w, False), _called("grads", name, g, True))
        for (name, w), (_, g) in zip(known, given, strict=True)
        if g is not None
    ]
    of_params, of_grads = [list(part) for part in zip(*both, strict=True)] or ([], [])
    backend_for(params).adaptive_clip(of_params, of_grads, float(clipping), float(eps), operator.index(axis))


def _called(what: str, name: str, leaf: Any, written: bool) -> tuple[str, Any]:
    """Name a leaf as errors do, and take it if it is another library's."""
    called = what if name == "params" else f"{what}[{name!r}]"
    return called, adopt(leaf, called, written)


def _leaves(tree: Any, written: bool) -> list[tuple[str, Any]]:
    return [(name, adopt(leaf, name, written)) for name, leaf in _core.flatten(tree)]
