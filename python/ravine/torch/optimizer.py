"""What the classes here share: torch's groups bound to the core, the step, and checkpoints."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch

from ravine import _core, backends
from ravine.backends import foreign
from ravine.torch.binding import Binding, Group, Rules, Slot, array_of

__all__ = ["Optimizer", "need"]

#: Options of torch that say how a step is to be run, and why it cannot be run so.
_REFUSED = {
    "foreach": "every step here is one pass over all parameters",
    "capturable": "the steps are counted on the host; call step outside of the graph",
    "differentiable": "autograd cannot see into a step",
}
#: And all of them.
_HOW = (*_REFUSED, "fused")


def need(name: str, value: Any, inside: bool, expected: str) -> None:
    """Refuse a value of a group that torch refuses."""
    if not inside:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")


class Optimizer(Rules, torch.optim.Optimizer):
    """What the classes here share: binding torch's groups to the core, the step, and checkpoints.

    The tensors in ``state`` are the core's states: what is put there counts from the next step on.
    """

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        self._bindings: list[Binding] | None = None
        self._slots: dict[Any, Slot] = {}
        self._rules: list[tuple[str, bool]] = []
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient, in place.

        Args:
            closure: computes the gradients, and returns the loss.

        Returns:
            What ``closure`` returned.

        Raises:
            ValueError: a number of a group out of range; a parameter that shares memory with another or its gradient.
            TypeError: a gradient that is sparse, where the class takes none, or on another device. Nothing was changed,
                of that rule and device.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._bindings is None or not self._fits():
            self._bind()
        try:
            for binding in self._bindings or ():
                binding.step()
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
        rules = [(self.rule_of(group), self.is_alone(group)) for group in self.param_groups]
        return seen == len(slots) and rules == self._rules

    def _bind(self) -> None:
        """Bind all parameters that have a gradient or a state, as torch makes no states for others either."""
        members: dict[tuple[str, int | None, int], list[tuple[str, Any, int]]] = {}
        for (name, p), g in self._named():
            if p.grad is not None or self.state.get(p):
                engine = g if self.engine_of_group else 0
                key = (self.rule_of(self.param_groups[g]), foreign.gpu_of(p), engine)
                members.setdefault(key, []).append((name, p, g))
        self._bindings = None
        self._rules = [(self.rule_of(group), self.is_alone(group)) for group in self.param_groups]
        bindings = [Binding(self, self, rule, gpu, those) for (rule, gpu, _), those in members.items()]
        self._slots = {slot.p: slot for binding in bindings for slot in binding.slots}
        self._bindings = bindings

    def _named(self) -> list[tuple[tuple[str, Any], int]]:
        """Return all parameters with their names and the number of their group."""
        names = [name for group in self.param_groups for name in group.get("param_names", ())]
        if not names or len(set(names)) < len(names):
            names = [f"{g}.{i}" for g, group in enumerate(self.param_groups) for i in range(len(group["params"]))]
        params = [(p, g) for g, group in enumerate(self.param_groups) for p in group["params"]]
        return [((name, p), g) for name, (p, g) in zip(names, params, strict=True)]

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters, with values of their own.

        Args:
            param_group: ``{"params": tensors, "lr": …}``; what it does not say is as the constructor said.

        Raises:
            ValueError: a value out of range, an option that cannot be honoured, parameters that share memory.
            TypeError: a parameter that is not a dense tensor. The group was not added.
        """
        super().add_param_group(param_group)
        try:
            self.check(self.param_groups[-1])
        except BaseException:
            self.param_groups.pop()
            raise
        self._bindings = None

    def check(self, group: Group) -> None:
        """Refuse a group that cannot be stepped rightly."""
        for option, why in _REFUSED.items():
            if group.get(option):
                raise ValueError(f"{option}: expected it left out, got {group[option]!r}; {why}")
        self.check_numbers(group)
        places: dict[int | None, dict[str, Any]] = {}
        for (name, p), _ in self._named():
            self.check_parameter(f"params[{name!r}]", p)
            places.setdefault(foreign.gpu_of(p), {})[name] = array_of(p, f"params[{name!r}]", True)
        for params in places.values():
            # Bound for a moment: dtype, strides, and who shares memory with whom.
            _core.Engine("sgd", params, lambda names: [0] * len(names), lambda *_: [], None, None, "propagate")

    def check_numbers(self, group: Group) -> None:
        """Refuse numbers out of range: here those that the rule knows."""
        rule = self.rule_of(group)
        engine = self.make_engine(backends.cpu, rule, {}, [], lambda *_: [])
        for name, value in self.values_of(group, 0, self.first_scalars(group)).items():
            engine.set_hyper(0, name, value)

    def check_parameter(self, name: str, p: torch.Tensor) -> None:
        """Refuse a parameter that the class has no formula for."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._bindings, self._slots, self._rules = None, {}, []
        for group in self.param_groups:
            for name, value in self.defaults.items():
                # torch puts "differentiable" among the defaults of all its classes.
                if name != "differentiable" or self._takes(name):
                    group.setdefault(name, value)
            # How torch ran the steps is no part of what is to be gone on with.
            group.update({name: self.defaults[name] for name in _HOW if name in group})

    def _takes(self, name: str) -> bool:
        own = (vars(base).get("__init__") for base in type(self).__mro__ if issubclass(base, Optimizer))
        return any(name in inspect.signature(init).parameters for init in own if init is not None)

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
