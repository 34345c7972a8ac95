"""Muon: momentum whose update is made orthogonal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Unpack

import numpy as np

from ravine import backends
from ravine.optimizers import OptionsButDecay, Value
from ravine.whole import WholeOptimizer

__all__ = ["CONVERGENT", "JORDAN", "Muon", "orthogonalize"]

#: Jordan's coefficients: steep at 0, so that five iterations bring singular values near 1, where they stay between 0.68
#: and 1.14 and do not converge.
JORDAN = (3.4445, -4.7750, 2.0315)
#: The quintic that converges to 1, third order: f(1) = 1, f'(1) = f''(1) = 0. It grows small values by 15/8 an
#: iteration, so it takes more of them.
CONVERGENT = (15 / 8, -10 / 8, 3 / 8)


def orthogonalize(
    x: Any, *, coefficients: tuple[float, float, float] = JORDAN, steps: int = 5, eps: float = 1e-7
) -> Any:
    r"""Bring the singular values of a matrix near 1 and leave its singular vectors: Newton-Schulz iterations.

    .. math:: X \leftarrow \frac{X}{\max(\|X\|_F, \epsilon)}, \quad\text{then } n \text{ times}\quad
        X \leftarrow a X + (b A + c A^2) X, \qquad A = X X^\top

    A singular value σ becomes aσ + bσ³ + cσ⁵ in each iteration; one that is 0 stays 0. A matrix that is taller than
    wide is worked on transposed.

    Args:
        x: matrix (float32, float64; NumPy or CuPy), only read.
        coefficients: (a, b, c). `JORDAN` brings all σ ≥ 0.01 of a matrix of Frobenius norm 1 into [0.68, 1.14] in five
            iterations, and no nearer in more. `CONVERGENT` brings them to 1, in 11 iterations from 0.01 on, 18 from
            1e-4 on.
        steps: n ≥ 0, how many iterations.
        eps: ε ≥ 0, the least norm that x is divided by.

    Returns:
        A new array of x's shape and dtype. Its bits are those of the array library's matrix product, which may differ
        between machines, versions and thread counts.

    Raises:
        TypeError: another dtype, or no array.
        ValueError: no matrix.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; CONVERGENT: Björck and
    Bowie, "An Iterative Algorithm for Computing the Best Estimate of an Orthogonal Matrix", 1971, third order.

    >>> rv.muon.orthogonalize(np.diag([3.0, -1.0]), coefficients=rv.muon.CONVERGENT, steps=12).round(6) + 0.0
    array([[ 1.,  0.],
           [ 0., -1.]])
    """
    a, b, c = coefficients
    if not backends.is_array(x) or x.dtype.name not in ("float32", "float64"):
        raise TypeError(f"x: expected a float32 or float64 array, got {getattr(x, 'dtype', type(x).__name__)}")
    if x.ndim != 2:
        raise ValueError(f"x: expected a matrix, got shape {x.shape}")
    xp, dtype = backends.array_module(x), x.dtype
    with np.errstate(all="ignore"):
        # Divided in float64: the norm of large float32 numbers is none of float32's.
        norm = xp.asarray(backends.backend_of(x).global_norm([("x", x)]))
        if dtype == "float64":
            # Nor is one of float64's that is beyond its largest number, of finite ones.
            shrink = xp.where(norm == math.inf, 2.0**-64, 1.0)
            x, eps = x * shrink, eps * shrink
            norm = xp.asarray(backends.backend_of(x).global_norm([("x", x)]))
        divisor = xp.maximum(norm, eps)
        x = xp.where(divisor == 0, 0.0, xp.ascontiguousarray(x).astype("float64") / divisor).astype(dtype)
        tall = x.shape[0] > x.shape[1]
        x = x.T if tall else x
        for _ in range(steps):
            square = x @ x.T
            x = a * x + (b * square + c * (square @ square)) @ x
    return xp.ascontiguousarray(x.T if tall else x)


class Muon(WholeOptimizer):
    r"""Momentum of matrices whose update is made orthogonal, so that all its directions move alike.

    .. math:: b \leftarrow \mu b + g, \qquad O = \mathrm{orthogonalize}(g + \mu b), \qquad
        w \leftarrow w - (\gamma\lambda w + \gamma\, s\, O)

    with s = √max(1, rows/columns), or 0.2·√max(rows, columns), which makes updates as large as AdamW's usually are, for
    its γ and λ to serve. See `ravine.muon.orthogonalize`.

    It is for the matrices inside a network. Vectors, scalars, kernels of more axes, and, by the advice of its author,
    embeddings and the last layer want another optimizer, such as :class:`AdamW`: give each its parameters.

    The matrix products are the array library's: **the bits of a step may differ** between NumPy and CuPy, machines,
    versions and numbers of threads, unlike those of other rules. Momentum, checks and clipping have theirs, and a run
    that is saved and loaded goes on bit for bit where the products do.

    Args:
        params: matrix, or any nesting of dict, list and tuple of arrays of two axes; changed in place.
        lr: γ ≥ 0 (1e-3), or a schedule.
        weight_decay: decoupled decay λ ≥ 0 (0.1): γλ·w is a part of the step.
        momentum: μ in [0, 1) (0.95), or a schedule.
        nesterov: g + μb (True), or b.
        ns_coefficients: (a, b, c) of the iteration (`ravine.muon.JORDAN`); a₁, a₃, a₅ in ``formula()``.
        ns_steps: how many iterations, a whole number (5). float16 and bfloat16 are worked on in float32.
        eps: ε ≥ 0 (1e-7), the least norm that the matrix is divided by; below it, O shrinks to 0.
        adjust_lr_fn: s: ``"original"``, √max(1, rows/columns), or ``"match_rms_adamw"``, 0.2·√max(rows, columns).
        options: see :class:`OptionsButDecay`; ``l2`` is refused.

    Raises:
        ValueError: a value out of range, or a parameter that is no matrix, named.
        TypeError: a parameter that is not a writable float array, named by its path.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; decay and the second s: Liu
    et al., "Muon is Scalable for LLM Training", 2025, equation 4. b is the sum that both write; torch.optim.Muon
    documents it and computes a mean, which is the same up to a factor that O does not see; its products are bfloat16.

    >>> w = np.array([[3.0, 0.0], [0.0, -1.0]])
    >>> opt = rv.Muon(w, lr=0.5, weight_decay=0.0, ns_coefficients=rv.muon.CONVERGENT, ns_steps=12)
    >>> _ = opt.step(w.copy()); w.round(6) + 0.0
    array([[ 2.5,  0. ],
           [ 0. , -0.5]])
    """

    _rule_about: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "hyperparameters": {
            "lr": "not_negative",
            "momentum": "fraction",
            "nesterov": "switch",
            "ns_a": "finite",
            "ns_b": "finite",
            "ns_c": "finite",
            "ns_steps": "whole",
            "eps": "not_negative",
            "match_rms_adamw": "switch",
        },
        "states": {"b": "first"},
    }
    _shapes = frozenset({"nesterov", "match_rms_adamw"})
    _prepared_states = ("b",)

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-3,
        *,
        weight_decay: Value = 0.1,
        momentum: Value = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[Value, Value, Value] = JORDAN,
        ns_steps: Value = 5,
        eps: Value = 1e-7,
        adjust_lr_fn: Literal["original", "match_rms_adamw"] = "original",
        **options: Unpack[OptionsButDecay],
    ) -> None:
        if adjust_lr_fn not in ("original", "match_rms_adamw"):
            raise ValueError(f"adjust_lr_fn: expected 'original' or 'match_rms_adamw', got {adjust_lr_fn!r}")
        self._prepared_by = "nesterov" if nesterov else "momentum"
        hyper: dict[str, Any] = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "ns_steps": ns_steps,
            "eps": eps,
            "match_rms_adamw": adjust_lr_fn == "match_rms_adamw",
        }
        super().__init__(params, "muon", hyper, {**options, "weight_decay": weight_decay})

    def _check_parameter(self, name: str, parameter: Any) -> None:
        if parameter.ndim != 2:
            called = "params" if name == "params" else f"params[{name!r}]"
            raise ValueError(
                f"{called}: expected a matrix, got shape {parameter.shape}; give it another optimizer, such as AdamW, "
                "and step both"
            )

    def _new_states(self, parameter: Any, dtype: type) -> dict[str, Any]:
        return {"b": self._backend.zeros(parameter.shape, dtype)}

    def _preparation(self, numbers: Mapping[str, float]) -> dict[str, float]:
        return {"momentum": numbers["momentum"]}

    def _update(
        self, parameter: Any, d: Any, states: Mapping[str, Any], numbers: Mapping[str, float], t: int
    ) -> tuple[Any, dict[str, Any]]:
        coefficients = numbers["ns_a"], numbers["ns_b"], numbers["ns_c"]
        o = orthogonalize(d, coefficients=coefficients, steps=int(numbers["ns_steps"]), eps=numbers["eps"])
        rows, columns = d.shape
        scale = 0.2 * math.sqrt(max(rows, columns)) if numbers["match_rms_adamw"] else math.sqrt(max(1, rows / columns))
        return o * -scale, {}

    def _formula_lines(self, values: Mapping[str, float], decay: str | None) -> list[str]:
        scale = "0.2·√max(rows, columns)" if values["match_rms_adamw"] else "√max(1, rows/columns)"
        return [
            "b ← μ·b + g",
            f"X ← {'g + μ·b' if values['nesterov'] else 'b'}",
            "X ← X/max(‖X‖, ε)",
            "X ← a₁·X + (a₃·A + a₅·A²)·X, A = X·Xᵀ, n times",
            self._last_line(f"γ·{scale}·X", decay),
        ]
