"""Norms of gradients, and clipping by them, for people with a loop of their own."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from ravine import _core
from ravine.backends import backend_for, cpu
from ravine.backends.foreign import adopt

__all__ = ["adaptive_clip_", "clip_by_global_norm_", "dot", "global_norm", "length", "tensor_norms"]

#: Products below it may have lost terms to underflow.
_LEAST = 2.0**-900


def global_norm(tree: Any) -> Any:
    r"""Return the Euclidean norm of all elements of all arrays together.

    .. math:: \|g\| = \sqrt{\sum_k \sum_i g_{k,i}^2}

    Squares and sums are float64, so float32 cannot overflow, and are added in one order, by the canonical tree: the
    bits depend neither on threads nor on the instruction set nor on strides. Where squares of float64 overflow, or
    underflow to a sum below 2⁻⁹⁰⁰, the elements are scaled by a power of two: the norm is right at every size.

    Args:
        tree: array, or any nesting of dict, list and tuple of arrays, float or complex; None counts as nothing.

    Returns:
        A float; of CuPy arrays, an array without axes that stays on the GPU.

    Raises:
        TypeError: a leaf that is no float or complex array, named by its path.

    >>> rv.global_norm({"w": np.array([3.0]), "b": np.array([[4.0]])})
    5.0
    """
    return backend_for(tree).global_norm(_leaves(tree, False))


def tensor_norms(tree: Any) -> dict[str, Any]:
    r"""Return the Euclidean norm of each array, by dotted name: those that `global_norm` combines, bit for bit.

    .. math:: \|g_k\| = \sqrt{\sum_i g_{k,i}^2}

    Args:
        tree: array, or any nesting of dict, list and tuple of arrays, float or complex; None is left out.

    Returns:
        Floats; of CuPy arrays, arrays without axes that stay on the GPU.

    Raises:
        TypeError: a leaf that is no float or complex array, named by its path.

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

    s is float64, rounded once to the arrays' dtype; where that dtype has no normal number for it, it multiplies in
    two factors, one a power of two. A NaN norm makes everything NaN; infinite elements make themselves NaN and the
    others 0. The norm afterwards may exceed c by a few units in the last place.

    Args:
        tree: array, or any nesting of dict, list and tuple of writable arrays, float or complex.
        max_norm: c > 0; infinity only measures, and writes nothing.

    Returns:
        The norm before, as `global_norm` does.

    Raises:
        ValueError: max_norm not above 0; a read-only array; two that share memory. Nothing was changed.
        TypeError: a leaf that is no float or complex array, named by its path.

    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", 2013, Algorithm 1.

    >>> g = {"w": np.array([3.0]), "b": np.array([4.0])}
    >>> rv.clip_by_global_norm_(g, 2.5), g["w"], g["b"]
    (5.0, array([1.5]), array([2.]))
    """
    if not max_norm > 0.0:
        raise ValueError(f"max_norm: expected a number > 0, infinity to measure only, got {max_norm!r}")
    return backend_for(tree).clip_by_global_norm(_leaves(tree, True), max_norm)


def length(v: Any) -> float:
    r"""Return ‖v‖ of a float64 vector of NumPy or CuPy: right wherever it is a number, whatever the squares are.

    .. math:: \|v\| = \sqrt{v^\top v}

    Args:
        v: vector, only read.

    >>> rv.norms.length(np.array([3e200, 4e200])) / 1e200
    5.0
    """
    square, power = dot(v, v)
    return float(np.ldexp(math.sqrt(square), power // 2)) if square >= 0 else math.nan


def dot(a: Any, b: Any) -> tuple[float, int]:
    r"""Return (m, k) with aᵀb = m·2ᵏ of float64 vectors, so that no product overflows or underflows.

    .. math:: a^\top b = \sum_i a_i b_i

    k is even, and 0 unless the sum of the plain products is not finite or is below 2⁻⁹⁰⁰: then both vectors are scaled
    by powers of two, by their largest elements. The products are the array library's, in its order.

    Args:
        a: vector (NumPy or CuPy), only read.
        b: vector of the same length.

    >>> m, k = rv.norms.dot(np.array([2.0**600, 2.0**600]), np.array([2.0**500, 0.0]))
    >>> m, k  # 2^1100
    (1.0, 1100)
    """
    with np.errstate(all="ignore"):
        plain = float(a @ b)
        if math.isfinite(plain) and abs(plain) >= _LEAST:
            return plain, 0
        sizes = [float(abs(x).max()) if x.size else 0.0 for x in (a, b)]
        if not all(0.0 < size < math.inf for size in sizes):
            return plain, 0
        powers = [math.frexp(size)[1] - 1 for size in sizes]
        powers[1] -= sum(powers) % 2
        scaled = [_scaled(x, -power) for x, power in zip((a, b), powers, strict=True)]
        return float(scaled[0] @ scaled[1]), sum(powers)


def _scaled(x: Any, power: int) -> Any:
    """Return x·2ᵏ; in two steps, as 2ᵏ may be no number where the product is one."""
    return x * 2.0 ** (power // 2) * 2.0 ** (power - power // 2)


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
        grads: arrays in the same nesting, of their shapes, float of any width, or complex where the parameters are,
            writable; None is left out.
        clipping: c > 0 (0.01).
        eps: ε > 0 (1e-3), the least norm that a unit's parameters count with: else those that are 0 would stay there.
        axis: the axis of outputs: -1 for (n_in, n_out) and (height, width, n_in, n_out), as in `ravine.nn` and JAX; 0
            for torch's (n_out, n_in, ...).

    Raises:
        ValueError: a value out of range; another nesting or another shape; an axis that an array does not have; a
            gradient that is read-only or shares memory. Nothing was changed.
        TypeError: a leaf that is no float or complex array, named by its path.

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
