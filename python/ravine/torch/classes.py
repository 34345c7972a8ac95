"""torch.optim's other classes whose rules work element by element, and Lion."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from ravine.torch.binding import Group, Number, number
from ravine.torch.optimizer import Optimizer, need

__all__ = ["ASGD", "SGD", "Adadelta", "Adagrad", "Lion", "RMSprop", "Rprop"]


def _common(group: Group) -> dict[str, float]:
    """Return what most rules share."""
    numbers = {"lr": number("lr", group["lr"]), "l2": number("weight_decay", group["weight_decay"])}
    return {**numbers, "maximize": float(group["maximize"])}


class SGD(Optimizer):
    r"""torch.optim.SGD over ravine's kernels.

    .. math:: g \leftarrow g + \lambda w, \quad b \leftarrow \mu b + (1-\tau) g, \text{ first } b = g, \quad
        w \leftarrow w - \gamma b

    Args:
        params: tensors, pairs of name and tensor, or dicts of them with values of their own.
        lr: γ ≥ 0 (1e-3).
        momentum: μ ≥ 0; 0 is plain descent, without a buffer. From 1 on, b grows without a limit.
        dampening: τ.
        weight_decay: λ ≥ 0, coupled.
        nesterov: g + μb in place of b; with momentum and without dampening only.
        maximize: ascend.
        fused: may be said; every step here is.
        foreach, differentiable: torch's, which cannot be honoured: left out, None or False.

    Raises:
        ValueError: a value out of range, an option that cannot be honoured, parameters that share memory.
        TypeError: a parameter that is not a dense tensor.

    Sparse gradients move the rows that they have, or with momentum all that they ever had, as in torch.

    Source: as :class:`ravine.SGD`; the arguments are torch.optim.SGD's.

    >>> w = torch.tensor([1.0, -2.0], requires_grad=True); opt = ravine.torch.SGD([w], lr=0.25)
    >>> w.square().sum().backward(); opt.step(); w.detach()
    tensor([ 0.5000, -1.0000])
    """

    state_names: ClassVar[dict[str, str]] = {"b": "momentum_buffer"}
    counted = False
    wide = ("momentum", "dampening")
    of_rows, densified = ("sgd",), ("momentum", "nesterov")

    def __init__(
        self,
        params: Iterable[Any],
        lr: Number = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: Number = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "maximize": maximize,
                "foreach": foreach,
                "differentiable": differentiable,
                "fused": fused,
            },
        )

    def rule_of(self, group: Group) -> str:
        if group["momentum"] == 0:
            return "sgd"
        return "nesterov" if group["nesterov"] else "momentum"

    def check_numbers(self, group: Group) -> None:
        need("momentum", group["momentum"], 0 <= group["momentum"] < math.inf, "a finite number >= 0")
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError(
                "nesterov: expected momentum > 0 and dampening = 0, "
                f"got momentum={group['momentum']!r}, dampening={group['dampening']!r}"
            )
        super().check_numbers(group)

    def values_of(self, group: Group, t: int, own: Mapping[str, Any]) -> dict[str, float]:
        values = _common(group)
        rule = self.rule_of(group)
        if rule != "sgd":
            values["momentum"] = float(group["momentum"])
        if rule == "momentum":
            values["dampening"] = float(group["dampening"])
        return values


class ASGD(Optimizer):
    r"""torch.optim.ASGD over ravine's kernels.

    .. math:: g \leftarrow g + \lambda w, \quad w \leftarrow (1 - \kappa\eta) w - \eta g, \quad
        a \leftarrow a + \mu (w - a), \quad \eta = \frac{\gamma}{(1 + \kappa\gamma t)^\alpha}, \quad
        \mu = \frac{1}{\max(1, t - t_0)}

    Args:
        params: tensors, pairs of name and tensor, or dicts of them with values of their own.
        lr: γ ≥ 0 (1e-2).
        lambd: κ ≥ 0 (1e-4).
        alpha: α ≥ 0 (0.75).
        t0: t₀ (1e6), after which a is a mean.
        weight_decay: λ ≥ 0 (0), coupled.
        maximize: ascend.
        foreach, capturable, differentiable: torch's, which cannot be honoured: left out, None or False.

    Raises:
        ValueError: a value out of range, an option that cannot be honoured, parameters that share memory.
        TypeError: a parameter that is not a dense tensor.

    Source: as :class:`ravine.ASGD`; η and μ are those of the update before, as in torch, whose arguments these are.

    >>> w = torch.tensor([1.0, -2.0], requires_grad=True); opt = ravine.torch.ASGD([w], lr=0.25, lambd=0)
    >>> w.square().sum().backward(); opt.step(); w.detach(), opt.state[w]["ax"]
    (tensor([ 0.5000, -1.0000]), tensor([ 0.5000, -1.0000]))
    """

    state_names: ClassVar[dict[str, str]] = {"average": "ax"}
    scalar_names = ("eta", "mu")
    wide = ("t0",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: Number = 1e-2,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "lambd": lambd,
                "alpha": alpha,
                "t0": t0,
                "weight_decay": weight_decay,
                "foreach": foreach,
                "maximize": maximize,
                "differentiable": differentiable,
                "capturable": capturable,
            },
        )

    def check_numbers(self, group: Group) -> None:
        for name in ("lr", "alpha"):
            need(name, group[name], 0 <= number(name, group[name]) < math.inf, "a finite number >= 0")
        need("t0", group["t0"], math.isfinite(group["t0"]), "a finite number")
        super().check_numbers(group)

    def rule_of(self, group: Group) -> str:
        return "asgd"

    def is_alone(self, group: Group) -> bool:
        return True

    def values_of(self, group: Group, t: int, own: Mapping[str, Any]) -> dict[str, float]:
        # η and μ are those of the last update, as torch has them in its states: α = 0 and t − t₀ = 1/μ give them.
        eta, mu = float(own["eta"]), float(own["mu"])
        need("mu", mu, mu > 0, "a number > 0")
        numbers = {"lr": eta, "lambd": float(group["lambd"]), "alpha": 0.0, "t0": t - 1 / mu}
        return {**_common(group), **numbers}

    def first_scalars(self, group: Group) -> dict[str, float]:
        return {"eta": number("lr", group["lr"]), "mu": 1.0}

    def next_scalars(self, group: Group, own: Mapping[str, Any], t: int) -> dict[str, float]:
        lr = number("lr", group["lr"])
        return {"eta": lr / (1 + group["lambd"] * lr * t) ** group["alpha"], "mu": 1 / max(1, t - group["t0"])}


class Adagrad(Optimizer):
    r"""torch.optim.Adagrad over ravine's kernels.

    .. math:: g \leftarrow g + \lambda w, \quad v \leftarrow v + g^2, \quad
        w \leftarrow w - \frac{\gamma}{1 + (t-1)\eta}\, g / (\sqrt{v} + \epsilon)

    Args:
        params: tensors, pairs of name and tensor, or dicts of them with values of their own.
        lr: γ ≥ 0 (1e-2).
        lr_decay: η ≥ 0 (0); t counts each parameter's updates.
        weight_decay: λ ≥ 0, coupled.
        initial_accumulator_value: v at the start, ≥ 0.
        eps: ε ≥ 0 (1e-10).
        maximize: ascend.
        fused: may be said; every step here is.
        foreach, differentiable: torch's, which cannot be honoured: left out, None or False.

    Raises:
        ValueError: a value out of range, an option that cannot be honoured, parameters that share memory.
        TypeError: a parameter that is not a dense tensor.

    Sparse gradients move the rows that they have, as in torch.

    Source: as :class:`ravine.Adagrad`; the arguments are torch.optim.Adagrad's.

    >>> w = torch.tensor([1.0, -2.0], requires_grad=True); opt = ravine.torch.Adagrad([w], lr=0.5)
    >>> w.square().sum().backward(); opt.step(); w.detach()
    tensor([ 0.5000, -1.5000])
    """

    state_names: ClassVar[dict[str, str]] = {"v": "sum"}
    of_rows = ("adagrad",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: Number = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        start = initial_accumulator_value
        need("initial_accumulator_value", start, 0 <= start < math.inf, "a finite number >= 0")
        super().__init__(
            params,
            {
                "lr": lr,
                "lr_decay": lr_decay,
                "eps": eps,
                "weight_decay": weight_decay,
                "initial_accumulator_value": initial_accumulator_value,
                "foreach": foreach,
                "maximize": maximize,
                "differentiable": differentiable,
                "fused": fused,
            },
        )

    def rule_of(self, group: Group) -> str:
        return "adagrad"

    def check_numbers(self, group: Group) -> None:
        need("lr_decay", group["lr_decay"], 0 <= group["lr_decay"] < math.inf, "a finite number >= 0")
        super().check_numbers(group)

    def is_alone(self, group: Group) -> bool:
        return bool(group["lr_decay"])

    def start_of(self, kind: str, group: Group) -> float:
        return float(self.defaults["initial_accumulator_value"])

    def values_of(self, group: Group, t: int, own: Mapping[str, Any]) -> dict[str, float]:
        rate = number("lr", group["lr"]) / (1 + t * group["lr_decay"])
        return {**_common(group), "lr": rate, "eps": float(group["eps"])}


class RMSprop(Optimizer):
    r"""torch.optim.RMSprop over ravine's kernels.

    .. math:: g \leftarrow g + \lambda w, \quad v \leftarrow \alpha v + (1-\alpha) g^2, \quad
        w \leftarrow w - \gamma\, g / (\sqrt{v} + \epsilon)

    Args:
        params: tensors, pairs of name and tensor, or dicts of them with values of their own.
        lr: γ ≥ 0 (1e-2).
        alpha: α in [0, 1], the weight of the past (0.99).
        eps: ε ≥ 0 (1e-8).
        weight_decay: λ ≥ 0, coupled.
        momentum: μ ≥ 0, on the normalised gradient.
        centered: divide by the standard deviation instead.
        maximize: ascend.
        capturable, foreach, differentiable: torch's, which cannot be honoured: left out, None or False.

    Raises:
        ValueError: a value out of range, an option that cannot be honoured, parameters that share memory.
        TypeError: a parameter that is not a dense tensor.

    Source: as :class:`ravine.RMSprop`; the arguments are torch.optim.RMSprop's.

    >>> w = torch.tensor([1.0, -2.0], requires_grad=True); opt = ravine.torch.RMSprop([w], lr=0.1)
    >>> w.square().sum().backward(); opt.step(); w.detach().abs() < 1e-6
    tensor([ True, False])
    """

    state_names: ClassVar[dict[str, str]] = {"v": "square_avg", "a": "grad_avg", "b": "momentum_buffer"}

    def __init__(
        self,
        params: Iterable[Any],
        lr: Number = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "alpha": alpha,
                "eps": eps,
                "centered": centered,
                "weight_decay": weight_decay,
                "capturable": capturable,
                "foreach": foreach,
                "maximize": maximize,
                "differentiable": differentiable,
            },
        )

    wide = ("momentum", "decay")

    def check_numbers(self, group: Group) -> None:
        need("momentum", group["momentum"], 0 <= group["momentum"] < math.inf, "a finite number >= 0")
        need("alpha", group["alpha"], 0 <= group["alpha"] <= 1, "a number in [0, 1]")
        super().check_numbers(group)

    def rule_of(self, group: Group) -> str:
        return "rmsprop" + "_centered" * bool(group["centered"]) + "_momentum" * bool(group["momentum"])

    def values_of(self, group: Group, t: int, own: Mapping[str, Any]) -> dict[str, float]:
        values = {**_common(group), "eps": float(group["eps"]), "decay": float(group["alpha"])}
        return values | ({"momentum": float(group["momentum"])} if group["momentum"] != 0 else {})


class Adadelta(Optimizer):
    r"""torch.optim.Adadelta over ravine's kernels.

    .. math:: g \leftarrow g + \lambda w, \quad v \leftarrow \rho v + (1-\rho) g^2, \quad
        d = \sqrt{\frac{u + \epsilon}{v + \epsilon}}\, g, \quad u \leftarrow \rho u + (1-\rho) d^2, \quad
        w \leftarrow w - \gamma d

    Args:
        params: tensors, pairs of name and tensor, or dicts of them with values of their own.
        lr: γ ≥ 0 (1).
        rho: ρ in [0, 1] (0.9).
        eps: ε ≥ 0 (1e-6).
        weight_decay: λ ≥ 0 (0), coupled.
        maximize: ascend.
        foreach, capturable, differentiable: torch's, which cannot be honoured: left out, None or False.

    Raises:
        ValueError: a value out of range, an option that cannot be honoured, parameters that share memory.
        TypeError: a parameter that is not a dense tensor.

    Source: as :class:`ravine.Adadelta`; the arguments are torch.optim.Adadelta's.

    >>> w = torch.tensor([1.0, -2.0], requires_grad=True); opt = ravine.torch.Adadelta([w], rho=0.0, eps=1.0)
    >>> w.square().sum().backward(); opt.step(); (1 - w.detach()[0]) * 5**0.5  # g/√(g² + 1), g = 2
    tensor(2.)
    """

    state_names: ClassVar[dict[str, str]] = {"v": "square_avg", "u": "acc_delta"}
    wide = ("rho",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: Number = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        capturable: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "rho": rho,
                "eps": eps,
                "weight_decay": weight_decay,
                "foreach": foreach,
                "capturable": capturable,
                "maximize": maximize,
                "differentiable": differentiable,
            },
        )

    def check_numbers(self, group: Group) -> None:
        need("rho", group["rho"], 0 <= group["rho"] <= 1, "a number in [0, 1]")
        super().check_numbers(group)

    def rule_of(self, group: Group) -> str:
        return "adadelta"

    def values_of(self, group: Group, t: int, own: Mapping[str, Any]) -> dict[str, float]:
        return {**_common(group), "rho": float(group["rho"]), "eps": float(group["eps"])}


class Rprop(Optimizer):
    r"""torch.optim.Rprop over ravine's kernels.

    .. math:: s \leftarrow \mathrm{clamp}(s\,(\eta_+ \text{ if } g g^- > 0,\ \eta_- \text{ if } g g^- < 0)), \quad
        w \leftarrow w - s\, \mathrm{sign}(g)

    Args:
        params: tensors, pairs of name and tensor, or dicts of them with values of their own.
        lr: s before the first step, > 0 (1e-2).
        etas: (η₋, η₊), with 0 < η₋ < 1 < η₊ (0.5, 1.2).
        step_sizes: the least and the greatest s (1e-6, 50).
        maximize: ascend.
        foreach, capturable, differentiable: torch's, which cannot be honoured: left out, None or False.

    Raises:
        ValueError: a value out of range, an option that cannot be honoured, parameters that share memory.
        TypeError: a parameter that is not a dense tensor.

    Source: as :class:`ravine.Rprop`; the arguments are torch.optim.Rprop's.

    >>> w = torch.tensor([1.0, -2.0], requires_grad=True); opt = ravine.torch.Rprop([w], lr=0.25)
    >>> w.square().sum().backward(); opt.step(); w.detach()
    tensor([ 0.7500, -1.7500])
    """

    state_names: ClassVar[dict[str, str]] = {"g_previous": "prev", "size": "step_size"}
    wide = ("step_min", "step_max")

    def __init__(
        self,
        params: Iterable[Any],
        lr: Number = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50),
        *,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "etas": etas,
                "step_sizes": step_sizes,
                "capturable": capturable,
                "foreach": foreach,
                "maximize": maximize,
                "differentiable": differentiable,
            },
        )

    def check_numbers(self, group: Group) -> None:
        less, more = group["etas"]
        need("etas", group["etas"], 0 < less < 1 < more < math.inf, "0 < etas[0] < 1 < etas[1]")
        need("lr", group["lr"], 0 <= number("lr", group["lr"]) < math.inf, "a finite number >= 0")
        super().check_numbers(group)

    def rule_of(self, group: Group) -> str:
        return "rprop"

    def start_of(self, kind: str, group: Group) -> float:
        return number("lr", group["lr"]) if kind == "size" else 0.0

    def values_of(self, group: Group, t: int, own: Mapping[str, Any]) -> dict[str, float]:
        (less, more), (least, most) = group["etas"], group["step_sizes"]
        # The rule adds its γ in the first update; torch's state begins with it.
        numbers = {"eta_minus": less, "eta_plus": more, "step_min": least, "step_max": most}
        return {name: float(x) for name, x in numbers.items()} | {"lr": 0.0, "maximize": float(group["maximize"])}


class Lion(Optimizer):
    r"""Lion as an optimizer of torch, which has none of its own.

    .. math:: w \leftarrow (1-\gamma\lambda)\, w - \gamma\, \mathrm{sign}(\beta_1 m + (1-\beta_1) g), \qquad
        m \leftarrow \beta_2 m + (1-\beta_2) g

    Args:
        params: tensors, pairs of name and tensor, or dicts of them with values of their own.
        lr: γ ≥ 0 (1e-4).
        betas: (β₁, β₂), each in [0, 1) (0.9, 0.99).
        weight_decay: λ ≥ 0 (0), decoupled.
        maximize: ascend.
        fused: may be said; every step here is.
        foreach, capturable, differentiable: torch's, which cannot be honoured: left out, None or False.

    Raises:
        ValueError: a value out of range, an option that cannot be honoured, parameters that share memory.
        TypeError: a parameter that is not a dense tensor.

    Source: as :class:`ravine.Lion`. The state is called ``exp_avg``, as in the authors' code.

    >>> w = torch.tensor([1.0, -2.0], requires_grad=True); opt = ravine.torch.Lion([w], lr=0.25)
    >>> w.square().sum().backward(); opt.step(); w.detach()
    tensor([ 0.7500, -1.7500])
    """

    state_names: ClassVar[dict[str, str]] = {"m": "exp_avg"}

    def __init__(
        self,
        params: Iterable[Any],
        lr: Number = 1e-4,
        betas: tuple[Number, Number] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "weight_decay": weight_decay,
                "maximize": maximize,
                "foreach": foreach,
                "capturable": capturable,
                "differentiable": differentiable,
                "fused": fused,
            },
        )

    def rule_of(self, group: Group) -> str:
        return "lion"

    def values_of(self, group: Group, t: int, own: Mapping[str, Any]) -> dict[str, float]:
        beta1, beta2 = group["betas"]
        values = {"lr": number("lr", group["lr"]), "maximize": float(group["maximize"])}
        values |= {"beta1": number("betas[0]", beta1), "beta2": number("betas[1]", beta2)}
        return values | {"weight_decay": number("weight_decay", group["weight_decay"])}
