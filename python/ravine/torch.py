"""The optimizers as torch.optim's: same arguments, groups, state and checkpoints, over the kernels of this package.

A class here takes the place of torch.optim's of the same name, for tensors on the CPU and (with CuPy) on NVIDIA GPUs:
closures, schedulers, ``torch.amp.GradScaler``, hooks, ``add_param_group`` and state_dicts work as there, and either
loads the other's state_dict. All parameters with one rule on one device are updated in one pass on several threads, or
one launch. Transposed, strided and channels-last parameters are right, and give the bits of contiguous ones.

What differs: a denominator of 0 makes an update of 0, not NaN. The states of float16 and bfloat16 parameters are
float32. Parameters that share memory, or of which two elements do (``expand``), raise. ``foreach``, ``capturable`` and
``differentiable`` raise; ``fused`` may be said, for every step here is. Complex parameters and sparse gradients raise.

>>> model = torch.nn.Linear(3, 1)
>>> optimizer = ravine.torch.AdamW(model.parameters(), lr=1e-2)
>>> model(torch.ones(2, 3)).square().mean().backward()
>>> optimizer.step()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch

from ravine import _core, backends
from ravine.backends import cuda, foreign

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Lion", "RMSprop"]

Group: TypeAlias = dict[str, Any]
Number: TypeAlias = float | torch.Tensor


class _Slot:
    """A parameter as it was bound, with its states, to see at each step that both still are."""

    def __init__(self, p: torch.Tensor, name: str, states: dict[str, torch.Tensor], known: bool) -> None:
        self.p, self.name, self.states = p, name, states
        #: Whether `Optimizer.state` has the states: like torch's, from the first update on.
        self.known = known
        self.pointer, self.strides = p.data_ptr(), p.stride()
        #: The last gradient, its address, and the array made of it.
        self.gradient: tuple[Any, int, Any] = (None, 0, None)

    def fits(self, state: Mapping[str, Any] | None) -> bool:
        """Whether the parameter lies where it lay, and its entry of `Optimizer.state` is as it was left."""
        p = self.p
        if p.data_ptr() != self.pointer or p.stride() != self.strides:
            return False
        if not self.known:
            return not state
        return state is not None and all(state.get(name) is tensor for name, tensor in self.states.items())

    def array(self) -> Any:
        """Return the gradient as an array; None if there is none."""
        g = self.p.grad
        if g is None:
            return None
        last, pointer, array = self.gradient
        if g is last and g.data_ptr() == pointer:
            return array
        array = foreign.adopt(g, f"grads[{self.name!r}]", False)
        self.gradient = (g, g.data_ptr(), array)
        return array


class _Binding:
    """The parameters of one rule on one device, and the engine that they are bound to."""

    def __init__(self, optimizer: Optimizer, rule: str, gpu: int | None, members: list[tuple[str, Any, int]]) -> None:
        self.gpu, self.slots = gpu, list[_Slot]()
        self.counts = np.zeros(len(members))
        #: Of each group of the engine: torch's group, and the number of a parameter whose own it is.
        self.rows: list[tuple[Group, int | None]] = []
        backend = backends.cpu if gpu is None else cuda.backend(gpu)
        steps = torch.from_numpy(self.counts)
        kinds = _core.rules()[rule]["states"]
        numbers, ours = list[int](), {}
        for i, (_, _, g) in enumerate(members):
            group = optimizer.param_groups[g]
            key = (g, i) if optimizer._alone(group) else (g, None)
            if key not in ours:
                ours[key] = len(self.rows)
                self.rows.append((group, key[1]))
            numbers.append(ours[key])
        pending = iter(members)

        def new_states(_: Any, dtype: str) -> list[Any]:
            name, p, _ = next(pending)
            own = optimizer.state.get(p) or {}
            i = len(self.slots)
            states = {optimizer._names[kind]: optimizer._tensor(own, p, name, kind, dtype) for kind in kinds}
            known = all(own.get(state) is not None for state in states) and bool(own)
            if optimizer._counted:
                self.counts[i] = float(own.get("step", 0))
                states = {"step": steps[i], **states}
            elif known and kinds:
                self.counts[i] = 1
            if known:
                optimizer.state[p].update(states)
            self.slots.append(_Slot(p, name, states, known))
            return [foreign.adopt(states[optimizer._names[kind]], kind, True) for kind in kinds]

        with self.stream():
            # As arrays: whether the tensors stay where they are is for `fits` to see, at a third of the cost.
            params = {name: foreign.adopt(p, f"params[{name!r}]", True) for name, p, _ in members}
            self.engine: Any = backend.Engine(rule, params, lambda _: numbers, new_states, None, None, "propagate")
            self.engine.set_counters(0, [int(count) for count in self.counts])
        self.sent: list[dict[str, float]] = [{} for _ in self.rows]
        #: What the counts were after the last step: they are in `Optimizer.state`, where anyone may set them.
        self.left = self.counts.tobytes()
        #: Autograd learns of the change as of torch's own in-place operations.
        self.changed = [p for _, p, _ in members]

    def stream(self) -> AbstractContextManager[Any]:
        """Run on torch's current stream of the device."""
        if self.gpu is None:
            return nullcontext()
        return cuda.on_stream(torch.cuda.current_stream(self.gpu).cuda_stream, self.gpu)

    def step(self, optimizer: Optimizer) -> None:
        """Update all parameters that have a gradient."""
        with self.stream():
            grads = {slot.name: slot.array() for slot in self.slots}
            if all(g is None for g in grads.values()):
                return  # as torch does; the core refuses such a step
            if self.left != self.counts.tobytes():
                self.engine.set_counters(0, [int(count) for count in self.counts])
            values = []
            for row, ((group, alone), sent) in enumerate(zip(self.rows, self.sent, strict=True)):
                new = optimizer._values(group, 0 if alone is None else int(self.counts[alone]))
                if new != sent:
                    values += [(row, name, value) for name, value in new.items() if sent.get(name) != value]
                    self.sent[row] = new
            self.engine.step(grads, values)
        updated = np.fromiter((g is not None for g in grads.values()), bool, len(grads))
        if optimizer._counted:
            self.counts[updated] += 1
        self.left = self.counts.tobytes()
        for slot, had in zip(self.slots, updated, strict=True):
            if had and not slot.known and slot.states:
                optimizer.state[slot.p].update(slot.states)
                slot.known = True
        torch.autograd.graph.increment_version(self.changed)


class Optimizer(torch.optim.Optimizer):
    """What the classes here share: binding torch's groups to the core, the step, and checkpoints.

    The tensors in ``state`` are the core's states: what is put there counts from the next step on.
    """

    #: The rule's names of its states → torch's.
    _names: ClassVar[dict[str, str]]
    #: Whether torch counts the updates of this class, in a state called "step".
    _counted: ClassVar[bool] = True

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        self._bindings: list[_Binding] | None = None
        self._slots: dict[Any, _Slot] = {}
        self._rules: list[tuple[str, bool]] = []
        super().__init__(params, defaults)

    def _rule(self, group: Group) -> str:
        """Return the rule of a group."""
        raise NotImplementedError

    def _values(self, group: Group, t: int) -> dict[str, float]:
        """Return the rule's numbers for a group, or, if each of its parameters is alone, for one after t updates."""
        raise NotImplementedError

    def _alone(self, group: Group) -> bool:
        """Whether the numbers differ from parameter to parameter of a group."""
        return False

    def _start(self, kind: str) -> float:
        """Return what a state holds at first."""
        return 0.0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient, in place.

        Args:
            closure: computes the gradients, and returns the loss.

        Returns:
            What ``closure`` returned.

        Raises:
            ValueError: a number of a group out of range; a parameter that shares memory with another or its gradient.
            TypeError: a gradient that is sparse, or on another device. Nothing was changed, of that rule and device.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._bindings is None or not self._fits():
            self._bind()
        try:
            for binding in self._bindings or ():
                binding.step(self)
        except BaseException:
            self._bindings = None  # it may have taken some of what was wrong
            raise
        return loss

    def _fits(self) -> bool:
        """Whether what is bound is what is there now."""
        slots, state, seen = self._slots, self.state, 0
        for group in self.param_groups:
            for p in group["params"]:
                slot = slots.get(p)
                if slot is None:
                    if p.grad is not None or state.get(p):
                        return False
                elif slot.fits(state.get(p)):
                    seen += 1
                else:
                    return False
        rules = [(self._rule(group), self._alone(group)) for group in self.param_groups]
        return seen == len(slots) and rules == self._rules

    def _bind(self) -> None:
        """Bind all parameters that have a gradient or a state, as torch makes no states for others either."""
        members: dict[tuple[str, int | None], list[tuple[str, Any, int]]] = {}
        for (name, p), g in self._named():
            if p.grad is not None or self.state.get(p):
                key = (self._rule(self.param_groups[g]), foreign.gpu_of(p))
                members.setdefault(key, []).append((name, p, g))
        self._bindings = None
        self._rules = [(self._rule(group), self._alone(group)) for group in self.param_groups]
        bindings = [_Binding(self, rule, gpu, those) for (rule, gpu), those in members.items()]
        self._slots = {slot.p: slot for binding in bindings for slot in binding.slots}
        self._bindings = bindings

    def _named(self) -> list[tuple[tuple[str, Any], int]]:
        """Return all parameters with their names and the number of their group."""
        names = [name for group in self.param_groups for name in group.get("param_names", ())]
        if not names or len(set(names)) < len(names):
            names = [f"{g}.{i}" for g, group in enumerate(self.param_groups) for i in range(len(group["params"]))]
        params = [(p, g) for g, group in enumerate(self.param_groups) for p in group["params"]]
        return [((name, p), g) for name, (p, g) in zip(names, params, strict=True)]

    def _tensor(self, own: Mapping[str, Any], p: torch.Tensor, name: str, kind: str, dtype: str) -> torch.Tensor:
        """Return a state as the core has it: that in ``own`` if it is so already, else a copy of it, else a new one."""
        state, wanted = own.get(self._names[kind]), getattr(torch, dtype)
        if state is not None:
            if state.shape != p.shape:
                what = f"state[{name!r}][{self._names[kind]!r}]"
                raise ValueError(f"{what}: expected shape {tuple(p.shape)}, got {tuple(state.shape)}")
            return state.detach().to(p.device, wanted).contiguous()
        start = self._start(kind)
        if p.device.type == "cpu" and start == 0:
            # NumPy's zeros take no memory until they are written, and then in huge pages.
            return torch.from_numpy(np.zeros(tuple(p.shape), dtype))
        return torch.full(tuple(p.shape), start, dtype=wanted, device=p.device)

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters, with values of their own.

        Args:
            param_group: ``{"params": tensors, "lr": …}``; what it does not say is as the constructor said.

        Raises:
            ValueError: a value out of range, an option that cannot be honoured, parameters that share memory.
            TypeError: a parameter that is not a dense tensor of real numbers. The group was not added.
        """
        super().add_param_group(param_group)
        try:
            self._check(self.param_groups[-1])
        except BaseException:
            self.param_groups.pop()
            raise
        self._bindings = None

    def _check(self, group: Group) -> None:
        for option in ("foreach", "capturable", "differentiable"):
            if group.get(option):
                raise ValueError(f"{option}: expected it left out, got {group[option]!r}; every step here is fused")
        engine = _core.Engine(self._rule(group), {}, lambda _: [], lambda *_: [], None, None, "propagate")
        for name, value in self._values(group, 0).items():
            engine.set_hyper(0, name, value)
        places: dict[int | None, dict[str, Any]] = {}
        for (name, p), _ in self._named():
            places.setdefault(foreign.gpu_of(p), {})[name] = p
        for params in places.values():
            # Bound for a moment: dtype, strides, and who shares memory with whom.
            _core.Engine("sgd", params, lambda names: [0] * len(names), lambda *_: [], None, None, "propagate")

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._bindings, self._slots, self._rules = None, {}, []
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
            # How torch ran the steps is no part of what is to be gone on with.
            group.update({name: self.defaults[name] for name in ("foreach", "capturable", "fused") if name in group})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state_dict of this class or of torch's, which is copied.

        Args:
            state_dict: what ``state_dict`` returned; parameters are matched by their order, as in torch.

        Raises:
            ValueError: other groups, or groups of other sizes.
        """
        hooked = bool(self._optimizer_load_state_dict_pre_hooks)
        super().load_state_dict(state_dict)
        ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for number, p in zip(ids, params, strict=True):
            # torch keeps the tensors of the dict if it can, which two optimizers would then both change; else it rounds
            # float32 states to a half-precision parameter's dtype. What a hook made of the dict is not to be seen here.
            states = self.state.get(p, {}) if hooked else state_dict["state"].get(number, {})
            for name, value in states.items():
                if isinstance(value, torch.Tensor):
                    device = value.device if name == "step" else p.device
                    self.state[p][name] = value.detach().to(device, copy=True)


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
        TypeError: a parameter that is not a dense tensor of real numbers.

    Source: as :class:`ravine.Adam`; the arguments are torch.optim.Adam's.

    >>> w = torch.tensor([1.0, -2.0], requires_grad=True); opt = ravine.torch.Adam([w], lr=0.1)
    >>> w.square().sum().backward(); opt.step(); w.detach()
    tensor([ 0.9000, -1.9000])
    """

    _names: ClassVar[dict[str, str]] = {"m": "exp_avg", "v": "exp_avg_sq", "v_max": "max_exp_avg_sq"}

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

    def _rule(self, group: Group) -> str:
        return "adam_amsgrad" if group["amsgrad"] else "adam"

    def _values(self, group: Group, t: int) -> dict[str, float]:
        beta1, beta2 = group["betas"]
        decoupled = group["decoupled_weight_decay"]
        return {
            "lr": float(group["lr"]),
            "beta1": float(beta1),
            "beta2": float(beta2),
            "eps": float(group["eps"]),
            "bias_correction": 1.0,
            "current_correction": 1.0,
            "weight_decay" if decoupled else "l2": float(group["weight_decay"]),
            "l2" if decoupled else "weight_decay": 0.0,
            "maximize": float(group["maximize"]),
        }


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
        TypeError: a parameter that is not a dense tensor of real numbers.

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


class SGD(Optimizer):
    r"""torch.optim.SGD over ravine's kernels.

    .. math:: g \leftarrow g + \lambda w, \quad b \leftarrow \mu b + (1-\tau) g, \text{ first } b = g, \quad
        w \leftarrow w - \gamma b

    Args:
        params: tensors, pairs of name and tensor, or dicts of them with values of their own.
        lr: γ ≥ 0 (1e-3).
        momentum: μ in [0, 1); 0 is plain descent, without a buffer.
        dampening: τ ≥ 0.
        weight_decay: λ ≥ 0, coupled.
        nesterov: g + μb in place of b; with momentum and without dampening only.
        maximize: ascend.
        fused: may be said; every step here is.
        foreach, differentiable: torch's, which cannot be honoured: left out, None or False.

    Raises:
        ValueError: a value out of range, an option that cannot be honoured, parameters that share memory.
        TypeError: a parameter that is not a dense tensor of real numbers.

    Source: as :class:`ravine.SGD`; the arguments are torch.optim.SGD's.

    >>> w = torch.tensor([1.0, -2.0], requires_grad=True); opt = ravine.torch.SGD([w], lr=0.25)
    >>> w.square().sum().backward(); opt.step(); w.detach()
    tensor([ 0.5000, -1.0000])
    """

    _names: ClassVar[dict[str, str]] = {"b": "momentum_buffer"}
    _counted = False

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

    def _rule(self, group: Group) -> str:
        if group["momentum"] == 0:
            return "sgd"
        return "nesterov" if group["nesterov"] else "momentum"

    def _check(self, group: Group) -> None:
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError(
                "nesterov: expected momentum > 0 and dampening = 0, "
                f"got momentum={group['momentum']!r}, dampening={group['dampening']!r}"
            )
        super()._check(group)

    def _values(self, group: Group, t: int) -> dict[str, float]:
        values = {name: float(group[name]) for name in ("lr", "maximize")} | {"l2": float(group["weight_decay"])}
        rule = self._rule(group)
        if rule != "sgd":
            values["momentum"] = float(group["momentum"])
        if rule == "momentum":
            values["dampening"] = float(group["dampening"])
        return values


class RMSprop(Optimizer):
    r"""torch.optim.RMSprop over ravine's kernels.

    .. math:: g \leftarrow g + \lambda w, \quad v \leftarrow \alpha v + (1-\alpha) g^2, \quad
        w \leftarrow w - \gamma\, g / (\sqrt{v} + \epsilon)

    Args:
        params: tensors, pairs of name and tensor, or dicts of them with values of their own.
        lr: γ ≥ 0 (1e-2).
        alpha: α in [0, 1), the weight of the past (0.99).
        eps: ε ≥ 0 (1e-8).
        weight_decay: λ ≥ 0, coupled.
        momentum: μ in [0, 1) on the normalised gradient.
        centered: divide by the standard deviation instead.
        maximize: ascend.
        capturable, foreach, differentiable: torch's, which cannot be honoured: left out, None or False.

    Raises:
        ValueError: a value out of range, an option that cannot be honoured, parameters that share memory.
        TypeError: a parameter that is not a dense tensor of real numbers.

    Source: as :class:`ravine.RMSprop`; the arguments are torch.optim.RMSprop's.

    >>> w = torch.tensor([1.0, -2.0], requires_grad=True); opt = ravine.torch.RMSprop([w], lr=0.1)
    >>> w.square().sum().backward(); opt.step(); w.detach().abs() < 1e-6
    tensor([ True, False])
    """

    _names: ClassVar[dict[str, str]] = {"v": "square_avg", "a": "grad_avg", "b": "momentum_buffer"}

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

    def _rule(self, group: Group) -> str:
        return "rmsprop" + "_centered" * bool(group["centered"]) + "_momentum" * bool(group["momentum"])

    def _values(self, group: Group, t: int) -> dict[str, float]:
        values = {name: float(group[name]) for name in ("lr", "eps", "maximize")}
        values |= {"decay": float(group["alpha"]), "l2": float(group["weight_decay"])}
        return values | ({"momentum": float(group["momentum"])} if group["momentum"] != 0 else {})


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
        TypeError: a parameter that is not a dense tensor of real numbers.

    Source: as :class:`ravine.Adagrad`; the arguments are torch.optim.Adagrad's.

    >>> w = torch.tensor([1.0, -2.0], requires_grad=True); opt = ravine.torch.Adagrad([w], lr=0.5)
    >>> w.square().sum().backward(); opt.step(); w.detach()
    tensor([ 0.5000, -1.5000])
    """

    _names: ClassVar[dict[str, str]] = {"v": "sum"}

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
        if not 0 <= initial_accumulator_value < float("inf"):
            raise ValueError(f"initial_accumulator_value: expected a number >= 0, got {initial_accumulator_value!r}")
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

    def _rule(self, group: Group) -> str:
        return "adagrad"

    def _check(self, group: Group) -> None:
        if not 0 <= group["lr_decay"] < float("inf"):
            raise ValueError(f"lr_decay: expected a number >= 0, got {group['lr_decay']!r}")
        super()._check(group)

    def _alone(self, group: Group) -> bool:
        return bool(group["lr_decay"])

    def _start(self, kind: str) -> float:
        return float(self.defaults["initial_accumulator_value"])

    def _values(self, group: Group, t: int) -> dict[str, float]:
        values = {name: float(group[name]) for name in ("eps", "maximize")} | {"l2": float(group["weight_decay"])}
        return values | {"lr": float(group["lr"]) / (1 + t * group["lr_decay"])}


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

    Raises:
        ValueError: a value out of range, parameters that share memory.
        TypeError: a parameter that is not a dense tensor of real numbers.

    Source: as :class:`ravine.Lion`. The state is called ``exp_avg``, as in the authors' code.

    >>> w = torch.tensor([1.0, -2.0], requires_grad=True); opt = ravine.torch.Lion([w], lr=0.25)
    >>> w.square().sum().backward(); opt.step(); w.detach()
    tensor([ 0.7500, -1.7500])
    """

    _names: ClassVar[dict[str, str]] = {"m": "exp_avg"}

    def __init__(
        self,
        params: Iterable[Any],
        lr: Number = 1e-4,
        betas: tuple[Number, Number] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize})

    def _rule(self, group: Group) -> str:
        return "lion"

    def _values(self, group: Group, t: int) -> dict[str, float]:
        beta1, beta2 = group["betas"]
        values = {name: float(group[name]) for name in ("lr", "weight_decay", "maximize")}
        return values | {"beta1": float(beta1), "beta2": float(beta2)}
