"""torch.optim's classes of Adam's family."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch

from ravine.torch.binding import Group, Number, number
from ravine.torch.optimizer import Optimizer, need

__all__ = ["Adam", "AdamW", "Adamax", "NAdam", "RAdam", "SparseAdam"]


def _numbers(group: Group) -> dict[str, float]:
    """Return the numbers that all of them have."""
    beta1, beta2 = group["betas"]
    betas = {"beta1": number("betas[0]", beta1), "beta2": number("betas[1]", beta2), "current_correction": 1.0}
    return {"lr": number("lr", group["lr"]), **betas, "eps": float(group["eps"]), "maximize": float(group["maximize"])}


def _decay(group: Group) -> dict[str, float]:
    """Return the decay, coupled or not."""
    decoupled, value = group.get("decoupled_weight_decay"), number("weight_decay", group["weight_decay"])
    return {"weight_decay": value if decoupled else 0.0, "l2": 0.0 if decoupled else value}


class Adam(Optimizer):
    r"""torch.optim.Adam over ravine's kernels.

    .. math:: g \leftarrow g + \lambda w, \quad m \leftarrow \beta_1 m + (1-\beta_1) g, \quad
        v \leftarrow \beta_2 v + (1-\beta_2) g^2, \quad w \leftarrow w - \gamma\, \hat m / (\sqrt{\hat v} + \epsilon)

    Args:
        params: tensors, pairs of name and tensor, or dicts of them with values of their own.
        lr: γ ≥ 0 (1e-3).
        betas: (β₁, β₂), each in [0, 1) (0.9, 0.999).
        eps: ε ≥ 0 (1e-8).
        weight_decay: λ ≥ 0 (0), coupled; or as in :class:`AdamW`, if ``decoupled_weight_decay``.
        amsgrad: the largest v so far in place of v.
        maximize: ascend.
        fused: may be said; every step here is.
        foreach, capturable, differentiable: torch's, which cannot be honoured: left out, None or False.
        decoupled_weight_decay: see ``weight_decay``.

    Raises:
        ValueError: a value out of range, an option that cannot be honoured, parameters that share memory.
        TypeError: a parameter that is not a dense tensor.

    Source: as :class:`ravine.Adam`; the arguments are torch.optim.Adam's.

    >>> w = torch.tensor([1.0, -2.0], requires_grad=True); opt = ravine.torch.Adam([w], lr=0.1)
    >>> w.square().sum().backward(); opt.step(); w.detach()
    tensor([ 0.9000, -1.9000])
    """

    state_names: ClassVar[dict[str, str]] = {"m": "exp_avg", "v": "exp_avg_sq", "v_max": "max_exp_avg_sq"}

    def __init__(
        self,
        params: Iterable[Any],
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "amsgrad": amsgrad,
                "maximize": maximize,
                "foreach": foreach,
                "capturable": capturable,
                "differentiable": differentiable,
                "fused": fused,
                "decoupled_weight_decay": decoupled_weight_decay,
            },
        )

    def rule_of(self, group: Group) -> str:
        return "adam_amsgrad" if group["amsgrad"] else "adam"

    def values_of(self, group: Group, t: int, own: Mapping[str, Any]) -> dict[str, float]:
        return {**_numbers(group), **_decay(group), "bias_correction": 1.0}


class AdamW(Adam):
    r"""torch.optim.AdamW over ravine's kernels.

    .. math:: w \leftarrow (1-\gamma\lambda)\, w - \gamma\, \hat m / (\sqrt{\hat v} + \epsilon)

    Args:
        params: tensors, pairs of name and tensor, or dicts of them with values of their own.
        lr: γ ≥ 0 (1e-3).
        betas: (β₁, β₂), each in [0, 1) (0.9, 0.999).
        eps: ε ≥ 0 (1e-8).
        weight_decay: λ ≥ 0 (0.01), decoupled: multiplied by γ, on the old w.
        amsgrad: the largest v so far in place of v.
        maximize: ascend.
        fused: may be said; every step here is.
        foreach, capturable, differentiable: torch's, which cannot be honoured: left out, None or False.

    Raises:
        ValueError: a value out of range, an option that cannot be honoured, parameters that share memory.
        TypeError: a parameter that is not a dense tensor.

    Source: as :class:`ravine.AdamW`; the arguments are torch.optim.AdamW's.

    >>> w = torch.tensor([1.0, -2.0], requires_grad=True); opt = ravine.torch.AdamW([w], lr=0.1, weight_decay=0.5)
    >>> w.square().sum().backward(); opt.step(); w.detach()
    tensor([ 0.8500, -1.8000])
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = True


class Adamax(Optimizer):
    r"""torch.optim.Adamax over ravine's kernels.

    .. math:: g \leftarrow g + \lambda w, \quad m \leftarrow \beta_1 m + (1-\beta_1) g, \quad
        u \leftarrow \max(\beta_2 u, |g| + \epsilon), \quad w \leftarrow w - \gamma\, \hat m / u

    Args:
        params: tensors, pairs of name and tensor, or dicts of them with values of their own.
        lr: γ ≥ 0 (2e-3).
        betas: (β₁, β₂), each in [0, 1) (0.9, 0.999).
        eps: ε ≥ 0 (1e-8).
        weight_decay: λ ≥ 0 (0), coupled.
        maximize: ascend.
        foreach, capturable, differentiable: torch's, which cannot be honoured: left out, None or False.

    Raises:
        ValueError: a value out of range, an option that cannot be honoured, parameters that share memory.
        TypeError: a parameter that is not a dense tensor.

    Source: as :class:`ravine.Adamax`; the arguments are torch.optim.Adamax's.

    >>> w = torch.tensor([1.0, -2.0], requires_grad=True); opt = ravine.torch.Adamax([w], lr=0.25)
    >>> w.square().sum().backward(); opt.step(); w.detach()
    tensor([ 0.7500, -1.7500])
    """

    state_names: ClassVar[dict[str, str]] = {"m": "exp_avg", "u": "exp_inf"}

    def __init__(
        self,
        params: Iterable[Any],
        lr: Number = 2e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "foreach": foreach,
                "maximize": maximize,
                "differentiable": differentiable,
                "capturable": capturable,
            },
        )

    def rule_of(self, group: Group) -> str:
        return "adamax"

    def values_of(self, group: Group, t: int, own: Mapping[str, Any]) -> dict[str, float]:
        return {**_numbers(group), **_decay(group), "bias_correction": 1.0, "eps_outside": 0.0}


class NAdam(Optimizer):
    r"""torch.optim.NAdam over ravine's kernels.

    .. math:: w \leftarrow w - \gamma \left(\frac{1-\mu_t}{1-\prod\mu}\, g +
        \frac{\mu_{t+1}}{1-\mu_{t+1}\prod\mu}\, m\right) \Big/ (\sqrt{\hat v} + \epsilon),
        \quad \mu_t = \beta_1 (1 - \tfrac12\, 0.96^{\psi t})

    Args:
        params: tensors, pairs of name and tensor, or dicts of them with values of their own.
        lr: γ ≥ 0 (2e-3).
        betas: (β₁, β₂), each in [0, 1) (0.9, 0.999).
        eps: ε ≥ 0 (1e-8).
        weight_decay: λ ≥ 0 (0), coupled; multiplied by γ and of the old w, if ``decoupled_weight_decay``.
        momentum_decay: ψ ≥ 0 (4e-3).
        decoupled_weight_decay: see ``weight_decay``.
        maximize: ascend.
        foreach, capturable, differentiable: torch's, which cannot be honoured: left out, None or False.

    Raises:
        ValueError: a value out of range, an option that cannot be honoured, parameters that share memory.
        TypeError: a parameter that is not a dense tensor.

    Source: as :class:`ravine.NAdam`; the arguments are torch.optim.NAdam's.

    >>> w = torch.tensor([1.0, -2.0], requires_grad=True); opt = ravine.torch.NAdam([w], lr=0.1, betas=(0.0, 0.999))
    >>> w.square().sum().backward(); opt.step(); w.detach()
    tensor([ 0.9000, -1.9000])
    """

    state_names: ClassVar[dict[str, str]] = {"m": "exp_avg", "v": "exp_avg_sq"}
    scalar_names = ("mu_product",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: Number = 2e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "momentum_decay": momentum_decay,
                "decoupled_weight_decay": decoupled_weight_decay,
                "foreach": foreach,
                "maximize": maximize,
                "capturable": capturable,
                "differentiable": differentiable,
            },
        )

    def rule_of(self, group: Group) -> str:
        return "nadam"

    def values_of(self, group: Group, t: int, own: Mapping[str, Any]) -> dict[str, float]:
        numbers = {"momentum_decay": float(group["momentum_decay"]), "constant_momentum": 0.0}
        return {**_numbers(group), **_decay(group), **numbers}

    def first_scalars(self, group: Group) -> dict[str, float]:
        return {"mu_product": 1.0}

    def next_scalars(self, group: Group, own: Mapping[str, Any], t: int) -> dict[str, float]:
        # For torch to go on with: the rule knows the product in closed form.
        mu = float(group["betas"][0]) * (1 - 0.5 * 0.96 ** (t * group["momentum_decay"]))
        return {"mu_product": float(own["mu_product"]) * mu}


class RAdam(Optimizer):
    r"""torch.optim.RAdam over ravine's kernels.

    .. math:: w \leftarrow w - \gamma\, \hat m\, r_t \frac{\sqrt{1-\beta_2^t}}{\sqrt v + \epsilon}
        \text{ if } \rho_t > 5, \text{ else } w \leftarrow w - \gamma\, \hat m

    Args:
        params: tensors, pairs of name and tensor, or dicts of them with values of their own.
        lr: γ ≥ 0 (1e-3).
        betas: (β₁, β₂), each in [0, 1) (0.9, 0.999).
        eps: ε ≥ 0 (1e-8).
        weight_decay: λ ≥ 0 (0), coupled; multiplied by γ and of the old w, if ``decoupled_weight_decay``.
        decoupled_weight_decay: see ``weight_decay``.
        maximize: ascend.
        foreach, capturable, differentiable: torch's, which cannot be honoured: left out, None or False.

    Raises:
        ValueError: a value out of range, an option that cannot be honoured, parameters that share memory.
        TypeError: a parameter that is not a dense tensor.

    Source: as :class:`ravine.RAdam`; the arguments are torch.optim.RAdam's.

    >>> w = torch.tensor([1.0, -2.0], requires_grad=True); opt = ravine.torch.RAdam([w], lr=0.25)
    >>> w.square().sum().backward(); opt.step(); w.detach()  # the first steps are those of momentum
    tensor([ 0.5000, -1.0000])
    """

    state_names: ClassVar[dict[str, str]] = {"m": "exp_avg", "v": "exp_avg_sq"}

    def __init__(
        self,
        params: Iterable[Any],
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "decoupled_weight_decay": decoupled_weight_decay,
                "foreach": foreach,
                "maximize": maximize,
                "capturable": capturable,
                "differentiable": differentiable,
            },
        )

    def rule_of(self, group: Group) -> str:
        return "radam"

    def values_of(self, group: Group, t: int, own: Mapping[str, Any]) -> dict[str, float]:
        return {**_numbers(group), **_decay(group), "eps_hat": 1.0, "from_four": 0.0}


class SparseAdam(Optimizer):
    r"""torch.optim.SparseAdam over ravine's kernels: Adam for the rows that sparse gradients have, and for no others.

    Args:
        params: tensors, pairs of name and tensor, or dicts of them with values of their own.
        lr: γ > 0 (1e-3).
        betas: (β₁, β₂), each in [0, 1) (0.9, 0.999).
        eps: ε > 0 (1e-8), added before the correction: √v + ε.
        maximize: ascend.

    Raises:
        ValueError: a value out of range, an option that cannot be honoured, parameters that share memory.
        TypeError: a parameter that is not a dense tensor.

    Source: as :class:`ravine.RowSparse`; the arguments are torch.optim.SparseAdam's.

    >>> table = torch.nn.Embedding(4, 2, sparse=True); before = table.weight.detach().clone()
    >>> optimizer = ravine.torch.SparseAdam(table.parameters(), lr=0.5)
    >>> table(torch.tensor([2])).sum().backward(); optimizer.step()
    >>> (before - table.weight.detach()).round(decimals=5)
    tensor([[0.0000, 0.0000],
            [0.0000, 0.0000],
            [0.5000, 0.5000],
            [0.0000, 0.0000]])
    """

    state_names: ClassVar[dict[str, str]] = {"m": "exp_avg", "v": "exp_avg_sq"}
    counts_in_int = True
    of_rows = ("adam",)
    only_rows = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: float = 1e-8,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "maximize": maximize,
            },
        )

    def rule_of(self, group: Group) -> str:
        return "adam"

    def check_numbers(self, group: Group) -> None:
        need("lr", group["lr"], number("lr", group["lr"]) > 0, "a number > 0")
        need("eps", group["eps"], group["eps"] > 0, "a number > 0")
        super().check_numbers(group)

    def check_parameter(self, name: str, p: torch.Tensor) -> None:
        if p.is_complex():
            raise ValueError(f"{name}: expected real numbers, got {p.dtype}; torch.optim.SparseAdam refuses them, too")

    def values_of(self, group: Group, t: int, own: Mapping[str, Any]) -> dict[str, float]:
        return {**_numbers(group), "bias_correction": 1.0, "eps_hat": 1.0}
