"""torch.optim's classes that need a whole matrix: their formulas as torch has them, and the classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from ravine import _core, backends
from ravine.adafactor import summed
from ravine.muon import JORDAN, orthogonalize
from ravine.torch.binding import Group, Number, number
from ravine.torch.optimizer import Optimizer, need
from ravine.whole import WholeOptimizer

__all__ = ["Adafactor", "Muon"]

#: torch's words for how the rate is fitted to a matrix's shape; their places are what the rule is told.
_ADJUSTMENTS = (None, "original", "match_rms_adamw", "spectral_unclamped")


class _Formula(WholeOptimizer):
    """A rule of arrays whose states are torch's tensors."""

    def __init__(
        self, params: Any, rule: str, numbers: Mapping[str, float], new_states: Callable[..., list[Any]]
    ) -> None:
        self._made = new_states
        hyper = {name: value for name, value in numbers.items() if name in self._rule_about["hyperparameters"]}
        super().__init__(params, rule, hyper, {"weight_decay": numbers["weight_decay"]})

    @property
    def engine(self) -> Any:
        """What steps."""
        return self._engine

    def _new_states(self, parameter: Any, dtype: type) -> dict[str, Any]:
        return dict(zip(self._kinds(parameter), self._made(parameter, dtype), strict=True))

    def _kinds(self, parameter: Any) -> list[str]:
        return list(self._rule_about["states"])


class _Muon(_Formula):
    _rule_about: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "hyperparameters": {
            "lr": "not_negative",
            "momentum": "not_negative",
            "nesterov": "switch",
            "ns_a": "finite",
            "ns_b": "finite",
            "ns_c": "finite",
            "ns_steps": "whole",
            "eps": "not_negative",
            "adjustment": "whole",
        },
        "states": {"b": "first"},
    }

    def _update(
        self, parameter: Any, d: Any, states: Mapping[str, Any], numbers: Mapping[str, float], t: int
    ) -> tuple[Any, dict[str, Any]]:
        mu, g, dtype = numbers["momentum"], -d, d.dtype.type
        b = states["b"] + dtype(1 - mu) * (g - states["b"])
        x = g + dtype(mu) * (b - g) if numbers["nesterov"] else b
        coefficients = numbers["ns_a"], numbers["ns_b"], numbers["ns_c"]
        o = orthogonalize(x, coefficients=coefficients, steps=int(numbers["ns_steps"]), eps=numbers["eps"])
        rows, columns = d.shape
        scales = {
            "match_rms_adamw": 0.2 * math.sqrt(max(rows, columns)),
            "spectral_unclamped": math.sqrt(rows / columns),
        }
        adjustment = _ADJUSTMENTS[int(numbers["adjustment"])]
        return o * dtype(scales.get(adjustment or "", math.sqrt(max(1, rows / columns)))), {"b": b}


class _Adafactor(_Formula):
    _rule_about: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "hyperparameters": {
            "lr": "not_negative",
            "beta2_decay": "not_positive",
            "eps1": "not_negative",
            "eps1_of_dtype": "switch",
            "eps2": "not_negative",
            "d": "positive",
        },
        "states": {"r": "second", "c": "second", "v": "second"},
    }

    def _kinds(self, parameter: Any) -> list[str]:
        return ["r", "c"] if parameter.ndim > 1 else ["v"]

    def _update(
        self, parameter: Any, d: Any, states: Mapping[str, Any], numbers: Mapping[str, float], t: int
    ) -> tuple[Any, dict[str, Any]]:
        xp, norm, g = backends.array_module(d), self._backend.global_norm, d.astype("float64")
        eps = _spacing(parameter.dtype) if numbers["eps1_of_dtype"] else numbers["eps1"]
        new = 1.0 / _core.raised(float(t), -numbers["beta2_decay"])  # 1 − β₂
        square = g * g
        seen = {"v": square} if d.ndim < 2 else {"r": _mean(square, d.ndim - 1), "c": _mean(square, d.ndim - 2)}
        made = {kind: states[kind] + new * (x - states[kind]) for kind, x in seen.items()}
        if d.ndim < 2:
            v = made["v"]
        else:
            mean = xp.maximum(_mean(made["r"], d.ndim - 2), eps)
            v = xp.where(mean == 0, 0.0, made["r"] * made["c"] / mean)
        v = xp.maximum(v, eps * eps)
        u = xp.where(v == 0, 0.0, g / xp.sqrt(v))
        root, lr = math.sqrt(d.size), numbers["lr"]
        # The second step multiplies by γ, of which torch takes no more than 1/√t.
        rate = min(lr, 1 / math.sqrt(t)) / lr if lr else 0.0
        scale = xp.maximum(xp.asarray(norm([("w", parameter)])) / root, numbers["eps2"]) * rate
        u *= -scale / xp.maximum(xp.asarray(norm([("u", u)])) / root / numbers["d"], 1.0)
        return u.astype(d.dtype), made


def _mean(x: Any, axis: int) -> Any:
    """Return the means along an axis, which stays."""
    return backends.array_module(x).expand_dims(summed(x, axis), axis) / x.shape[axis]


def _spacing(dtype: Any) -> float:
    return 2.0**-7 if dtype.name == "bfloat16" else float(np.finfo(dtype).eps)


class _Matrix(Optimizer):
    """What both share: each group has an engine of its own, made of array code."""

    engine_of_group = True
    _formula: ClassVar[type[_Formula]]

    def rule_of(self, group: Group) -> str:
        return self._formula.__name__.removeprefix("_").lower()

    def make_engine(self, backend: Any, rule: str, params: dict[str, Any], numbers: list[int], new_states: Any) -> Any:
        # With the defaults, until a step sends the group's own.
        return self._formula(params, rule, self.values_of(self.defaults, 0, {}), new_states).engine

    def check_parameter(self, name: str, p: torch.Tensor) -> None:
        if p.is_complex():
            kind = type(self).__name__
            raise TypeError(f"{name}: expected real numbers, got {p.dtype}; torch.optim.{kind} refuses them, too")


class Muon(_Matrix):
    r"""torch.optim.Muon over ravine's kernels.

    .. math:: b \leftarrow \mu b + (1-\mu) g, \qquad O = \mathrm{orthogonalize}((1-\mu) g + \mu b), \qquad
        w \leftarrow (1-\gamma\lambda) w - \gamma\, s\, O

    Where torch rounds the matrix to bfloat16 and multiplies so, this works in float32, or float64 for float64.

    Args:
        params: matrices, pairs of name and matrix, or dicts of them with values of their own.
        lr: γ ≥ 0 (1e-3).
        weight_decay: λ ≥ 0 (0.1), decoupled: multiplied by γ, on the old w.
        momentum: μ ≥ 0 (0.95).
        nesterov: as above (True), or the matrix is b.
        ns_coefficients: (a, b, c) of the iteration, see `ravine.muon.orthogonalize`.
        eps: ε ≥ 0 (1e-7), the least norm that the matrix is divided by.
        ns_steps: how many iterations, fewer than 100 (5).
        adjust_lr_fn: s: None and ``"original"``, √max(1, rows/columns); ``"match_rms_adamw"``, 0.2·√max(rows, columns);
            ``"spectral_unclamped"``, √(rows/columns).

    Raises:
        ValueError: a value out of range, a parameter that is no matrix, parameters that share memory.
        TypeError: a parameter that is not a dense tensor of real numbers.

    Source: as :class:`ravine.Muon`; the arguments and the buffer are torch.optim.Muon's.

    >>> w = torch.eye(2, requires_grad=True); opt = ravine.torch.Muon([w], lr=0.5, weight_decay=0.5, ns_steps=20,
    ...     ns_coefficients=ravine.muon.CONVERGENT)
    >>> w.square().sum().backward(); opt.step(); w.detach().round(decimals=5)
    tensor([[0.2500, 0.0000],
            [0.0000, 0.2500]])
    """

    state_names: ClassVar[dict[str, str]] = {"b": "momentum_buffer"}
    counted = False
    _formula = _Muon

    def __init__(
        self,
        params: Iterable[Any],
        lr: Number = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = JORDAN,
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "nesterov": nesterov,
                "ns_coefficients": ns_coefficients,
                "eps": eps,
                "ns_steps": ns_steps,
                "adjust_lr_fn": adjust_lr_fn,
            },
        )

    def kinds_of(self, rule: str, p: torch.Tensor) -> list[str]:
        return ["b"]

    def check_parameter(self, name: str, p: torch.Tensor) -> None:
        super().check_parameter(name, p)
        if p.ndim != 2:
            raise ValueError(f"{name}: expected a matrix, got shape {tuple(p.shape)}; give it to another optimizer")

    def check_numbers(self, group: Group) -> None:
        adjustment, steps, coefficients = group["adjust_lr_fn"], group["ns_steps"], group["ns_coefficients"]
        need("adjust_lr_fn", adjustment, adjustment in _ADJUSTMENTS, f"one of {_ADJUSTMENTS}")
        need("ns_steps", steps, steps < 100, "a whole number below 100")
        need("ns_coefficients", coefficients, len(coefficients) == 3, "three numbers")
        super().check_numbers(group)

    def values_of(self, group: Group, t: int, own: Mapping[str, Any]) -> dict[str, float]:
        a, b, c = group["ns_coefficients"]
        return {
            "lr": number("lr", group["lr"]),
            "weight_decay": number("weight_decay", group["weight_decay"]),
            "momentum": float(group["momentum"]),
            "nesterov": float(bool(group["nesterov"])),
            "ns_a": float(a),
            "ns_b": float(b),
            "ns_c": float(c),
            "ns_steps": float(group["ns_steps"]),
            "eps": float(group["eps"]),
            "adjustment": float(_ADJUSTMENTS.index(group["adjust_lr_fn"])),
        }


class Adafactor(_Matrix):
    r"""torch.optim.Adafactor: the second moment by the means of rows and columns, the update limited in size.

    .. math:: R \leftarrow \beta_t R + (1-\beta_t)\, \overline{g^2}^{\text{rows}}, \quad
        C \leftarrow \beta_t C + (1-\beta_t)\, \overline{g^2}^{\text{columns}}, \quad
        V = \max\!\left(\frac{R C}{\max(\overline R, \epsilon_1)}, \epsilon_1^2\right), \quad U = g/\sqrt V

    .. math:: w \leftarrow (1-\gamma\lambda) w - \min(\gamma, 1/\sqrt t)\, \max(\epsilon_2, \mathrm{RMS}(w))\,
        \frac{U}{\max(1, \mathrm{RMS}(U)/d)}, \qquad \beta_t = 1 - t^{\delta}

    V of a tensor of one axis or none is a mean of g², at least ε₁².

    Args:
        params: tensors, pairs of name and tensor, or dicts of them with values of their own.
        lr: γ ≥ 0 (1e-2).
        beta2_decay: δ ≤ 0 (−0.8).
        eps: (ε₁, ε₂), each ≥ 0 (None, 1e-3); None is the spacing of the parameter's dtype at 1.
        d: ≥ 1 (1): the largest root mean square of U.
        weight_decay: λ ≥ 0 (0), decoupled: multiplied by γ, on the old w.
        foreach: torch's, which cannot be honoured: left out, None or False.
        maximize: ascend.

    Raises:
        ValueError: a value out of range, an option that cannot be honoured, parameters that share memory.
        TypeError: a parameter that is not a dense tensor of real numbers.

    Source: as :class:`ravine.Adafactor`, whose sums, ε₁ and rate are the paper's; here all are torch.optim.Adafactor's.

    >>> w = torch.tensor([1.0, -2.0], requires_grad=True); opt = ravine.torch.Adafactor([w], lr=0.5, eps=(None, 0.5))
    >>> (w * torch.tensor([3.0, -4.0])).sum().backward(); opt.step()  # U = sign(g), RMS(w) = √2.5
    >>> (torch.tensor([1.0, -2.0]) - w.detach()).square()
    tensor([0.6250, 0.6250])
    """

    state_names: ClassVar[dict[str, str]] = {"r": "row_var", "c": "col_var", "v": "variance"}
    _formula = _Adafactor

    def __init__(
        self,
        params: Iterable[Any],
        lr: Number = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "beta2_decay": beta2_decay,
                "eps": eps,
                "d": d,
                "weight_decay": weight_decay,
                "foreach": foreach,
                "maximize": maximize,
            },
        )

    def kinds_of(self, rule: str, p: torch.Tensor) -> list[str]:
        return ["r", "c"] if p.ndim > 1 else ["v"]

    def shape_of(self, kind: str, p: torch.Tensor) -> tuple[int, ...]:
        shape = list(p.shape)
        if kind != "v":
            shape[-1 if kind == "r" else -2] = 1
        return tuple(shape)

    def check_numbers(self, group: Group) -> None:
        need("d", group["d"], 1 <= group["d"] < math.inf, "a finite number >= 1")
        super().check_numbers(group)

    def values_of(self, group: Group, t: int, own: Mapping[str, Any]) -> dict[str, float]:
        eps1, eps2 = group["eps"]
        return {
            "lr": number("lr", group["lr"]),
            "weight_decay": number("weight_decay", group["weight_decay"]),
            "beta2_decay": float(group["beta2_decay"]),
            "eps1": float(eps1 or 0.0),
            "eps1_of_dtype": float(eps1 is None),
            "eps2": float(eps2),
            "d": float(group["d"]),
            "maximize": float(group["maximize"]),
        }
