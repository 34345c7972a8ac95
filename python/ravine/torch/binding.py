"""torch's tensors bound to the core, and what a step looks at: gradients, states, and where all lie."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
import torch

from ravine import _core, backends
from ravine.backends import cuda, foreign
from ravine.sparse import Rows, RowSparse

__all__ = ["Binding", "Rules", "Slot", "array_of", "number"]

Group: TypeAlias = dict[str, Any]
Number: TypeAlias = float | torch.Tensor


def number(name: str, value: Any) -> float:
    """Return a number that may be a tensor of one element."""
    if isinstance(value, torch.Tensor) and value.numel() != 1:
        raise ValueError(f"{name}: expected a number or a tensor of one element, got shape {tuple(value.shape)}")
    return float(value)


def scalar_dtype() -> torch.dtype:
    """Return what torch counts steps in."""
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32


def array_of(x: Any, name: str, written: bool) -> Any:
    """Return the array over a tensor's memory; a complex one's with a last axis of 2."""
    if x.is_complex() and x.layout is torch.strided and not x.is_conj() and not x.is_neg():
        x = torch.view_as_real(x.detach())
    return foreign.adopt(x, name, written)


class Rules:
    """What a class of torch.optim says of itself: its rule, the rule's numbers and states."""

    #: The rule's names of its states → torch's.
    state_names: ClassVar[dict[str, str]]
    #: Whether torch counts the updates of this class, in a state called "step".
    counted: ClassVar[bool] = True
    #: Whether that is a plain int, as in SparseAdam.
    counts_in_int: ClassVar[bool] = False
    #: States of a number for each parameter, which the class keeps itself.
    scalar_names: ClassVar[tuple[str, ...]] = ()
    #: Hyperparameters of rules whose range in torch is wider than the paper's; `check_numbers` has torch's.
    wide: ClassVar[tuple[str, ...]] = ()
    #: Rules for which the rows of a sparse gradient are all that changes, and those that take it as a dense one.
    of_rows: ClassVar[tuple[str, ...]] = ()
    densified: ClassVar[tuple[str, ...]] = ()
    #: Whether a dense gradient is refused.
    only_rows: ClassVar[bool] = False
    #: Whether each group has an engine of its own.
    engine_of_group: ClassVar[bool] = False

    def rule_of(self, group: Group) -> str:
        """Return the rule of a group."""
        raise NotImplementedError

    def values_of(self, group: Group, t: int, own: Mapping[str, Any]) -> dict[str, float]:
        """Return the rule's numbers for a group, or, if each of its parameters is alone, for one after t updates."""
        raise NotImplementedError

    def is_alone(self, group: Group) -> bool:
        """Whether the numbers differ from parameter to parameter of a group."""
        return False

    def kinds_of(self, rule: str, p: torch.Tensor) -> list[str]:
        """Return the names of the rule's states for a parameter."""
        return list(_core.rules()[rule]["states"])

    def shape_of(self, kind: str, p: torch.Tensor) -> tuple[int, ...]:
        """Return the shape of a state."""
        return tuple(p.shape)

    def start_of(self, kind: str, group: Group) -> float:
        """Return what a state holds at first."""
        return 0.0

    def first_scalars(self, group: Group) -> dict[str, float]:
        """Return the states of ``scalar_names`` before the first update."""
        return {}

    def next_scalars(self, group: Group, own: Mapping[str, Any], t: int) -> dict[str, float]:
        """Return them after update t."""
        return {}

    def make_engine(self, backend: Any, rule: str, params: dict[str, Any], numbers: list[int], new_states: Any) -> Any:
        """Bind arrays to the core."""
        engine = backend.Engine(rule, params, lambda _: numbers, new_states, None, None, "propagate")
        for name in self.wide:
            if name in _core.rules()[rule]["hyperparameters"]:
                engine.widen(name)
        return engine


class _Optimizer(Protocol):
    """What a binding needs of an optimizer besides its rules."""

    param_groups: list[Group]
    state: Any


class Slot:
    """A parameter as it was bound, with its states, to see at each step that both still are."""

    def __init__(self, p: torch.Tensor, name: str, group: Group, states: dict[str, torch.Tensor], known: bool) -> None:
        self.p, self.name, self.group, self.states = p, name, group, states
        #: Whether `Optimizer.state` has the states: like torch's, from the first update on.
        self.known = known
        #: The count that `Optimizer.state` has, where it is an int.
        self.count: int | None = None
        #: The arrays of the parameter and its states.
        self.arrays: list[Any] = []
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
        if state is None or (self.count is not None and state.get("step") != self.count):
            return False
        return all(state.get(name) is tensor for name, tensor in self.states.items())

    def array(self) -> Any:
        """Return the gradient as an array; None if there is none; a sparse one as it is."""
        g = self.p.grad
        if g is None:
            return None
        if g.layout is not torch.strided:
            return g
        last, pointer, array = self.gradient
        if g is last and g.data_ptr() == pointer:
            return array
        where = f"grads[{self.name!r}]"
        if g.is_conj() or g.is_neg():  # copies, which the next step must not take for the gradient
            return array_of(g.resolve_conj().resolve_neg(), where, False)
        array = array_of(g, where, False)
        self.gradient = (g, g.data_ptr(), array)
        return array


class Binding:
    """The parameters of one rule on one device, and the engine that they are bound to."""

    def __init__(
        self, rules: Rules, optimizer: _Optimizer, rule: str, gpu: int | None, members: list[tuple[str, Any, int]]
    ) -> None:
        self.rules, self.optimizer, self.rule, self.gpu = rules, optimizer, rule, gpu
        self.slots = list[Slot]()
        #: How often each parameter was updated; and the same in `Optimizer.state`, where torch has float32.
        self.updates = np.zeros(len(members), np.int64)
        steps = torch.zeros(len(members), dtype=scalar_dtype())
        self.counts = steps.numpy()
        #: Of each group of the engine: torch's group, and the number of a parameter whose own it is.
        self.rows: list[tuple[Group, int | None]] = []
        numbers, ours = list[int](), dict[tuple[int, int | None], int]()
        for i, (_, _, g) in enumerate(members):
            group = optimizer.param_groups[g]
            key = (g, i) if rules.is_alone(group) else (g, None)
            if key not in ours:
                ours[key] = len(self.rows)
                self.rows.append((group, key[1]))
            numbers.append(ours[key])
        pending = iter(members)

        def new_states(_: Any, dtype: Any) -> list[Any]:
            name, p, g = next(pending)
            i = len(self.slots)
            slot = self._slot(name, p, optimizer.param_groups[g], np.dtype(dtype).name, steps[i])
            kinds = rules.kinds_of(rule, p)
            slot.arrays += [array_of(slot.states[rules.state_names[kind]], kind, True) for kind in kinds]
            return slot.arrays[1:]

        self.backend = backends.cpu if gpu is None else cuda.backend(gpu)
        with self.stream():
            # As arrays: whether the tensors stay where they are is for `fits` to see, at a third of the cost.
            params = {name: array_of(p, f"params[{name!r}]", True) for name, p, _ in members}
            self.arrays = iter(params.values())
            self.engine: Any = rules.make_engine(self.backend, rule, params, numbers, new_states)
            self.engine.set_counters(0, self.updates.tolist())
        self.sent: list[dict[str, float]] = [{} for _ in self.rows]
        #: What the counts were after the last step: they are in `Optimizer.state`, where anyone may set them.
        self.left = self.counts.tobytes()
        #: Autograd learns of the change as of torch's own in-place operations.
        self.changed = [p for _, p, _ in members]

    def _slot(self, name: str, p: torch.Tensor, group: Group, dtype: str, step: torch.Tensor) -> Slot:
        """Bind a parameter's states: those in `Optimizer.state`, else new ones."""
        rules, own, i = self.rules, self.optimizer.state.get(p) or {}, len(self.slots)
        kinds = rules.kinds_of(self.rule, p)
        states = {rules.state_names[kind]: self._state(own, p, name, group, kind, dtype) for kind in kinds}
        known = all(own.get(state) is not None for state in states) and bool(own)
        for scalar, first in rules.first_scalars(group).items():
            value = own.get(scalar)
            states[scalar] = torch.tensor(first if value is None else float(value), dtype=scalar_dtype())
        slot = Slot(p, name, group, states, known)
        if rules.counted:
            self.updates[i] = self.counts[i] = float(own.get("step", 0))
            if not rules.counts_in_int:
                slot.states = {"step": step, **states}
            elif known:
                slot.count = self.optimizer.state[p]["step"] = int(self.updates[i])
        elif known and kinds:
            self.updates[i] = 1
        if known:
            self.optimizer.state[p].update(slot.states)
        slot.arrays.append(next(self.arrays))
        self.slots.append(slot)
        return slot

    def _state(
        self, own: Mapping[str, Any], p: torch.Tensor, name: str, group: Group, kind: str, dtype: str
    ) -> torch.Tensor:
        """Return a state as the core has it: that in ``own`` if it is so already, else a copy of it, else a new one."""
        called, shape = self.rules.state_names[kind], self.rules.shape_of(kind, p)
        state, wanted = own.get(called), getattr(torch, dtype)
        if p.is_complex():
            wanted = wanted.to_complex()
        if state is not None:
            if state.layout is torch.sparse_coo:  # SGD's buffer of sparse gradients
                state = state.to_dense()
            if tuple(state.shape) != shape:
                raise ValueError(f"state[{name!r}][{called!r}]: expected shape {shape}, got {tuple(state.shape)}")
            return state.detach().to(p.device, wanted).contiguous().resolve_conj().resolve_neg()
        start = self.rules.start_of(kind, group)
        if p.device.type == "cpu" and start == 0 and not p.is_complex():
            # NumPy's zeros take no memory until they are written, and then in huge pages.
            return torch.from_numpy(np.zeros(shape, dtype))
        return torch.full(shape, complex(start, start) if p.is_complex() else start, dtype=wanted, device=p.device)

    def stream(self) -> AbstractContextManager[Any]:
        """Run on torch's current stream of the device."""
        if self.gpu is None:
            return nullcontext()
        return cuda.on_stream(torch.cuda.current_stream(self.gpu).cuda_stream, self.gpu)

    def step(self) -> None:
        """Update all parameters that have a gradient."""
        rules = self.rules
        with self.stream():
            grads = {slot.name: slot.array() for slot in self.slots}
            if self.left != self.counts.tobytes():
                changed = self.counts != np.frombuffer(self.left, self.counts.dtype)
                self.updates[changed] = self.counts[changed]
                self.engine.set_counters(0, self.updates.tolist())
            updated = np.fromiter((g is not None for g in grads.values()), bool, len(grads))
            rows = self._rows(grads)
            values = []
            for row, ((group, alone), sent) in enumerate(zip(self.rows, self.sent, strict=True)):
                t, own = (0, {}) if alone is None else (int(self.updates[alone]), self.slots[alone].states)
                new = rules.values_of(group, t, own)
                if new != sent:
                    values += [(row, name, value) for name, value in new.items() if sent.get(name) != value]
                    self.sent[row] = new
            if any(g is not None for g in grads.values()):
                self.engine.step(grads, values)
            else:
                for value in values:
                    self.engine.set_hyper(*value)
            for part in rows:
                part.write_back()
        self.updates[updated] += 1
        if rows:
            self.engine.set_counters(0, self.updates.tolist())
        if rules.counted:
            # torch's float32 counts stop at 2²⁴; the core's do not.
            self.counts[:] = self.updates
        self.left = self.counts.tobytes()
        every = bool(rules.scalar_names) or rules.counts_in_int
        for slot, count, had in zip(self.slots, self.updates, updated, strict=True):
            if had and (every or not slot.known):
                self._tell(slot, int(count))
        torch.autograd.graph.increment_version(self.changed)

    def _tell(self, slot: Slot, t: int) -> None:
        """Have `Optimizer.state` hold the states of a parameter after its update t."""
        for name, value in self.rules.next_scalars(slot.group, slot.states, t).items():
            slot.states[name].fill_(value)
        if not slot.known and (slot.states or self.rules.counts_in_int):
            self.optimizer.state[slot.p].update(slot.states)
            slot.known = True
        if self.rules.counts_in_int:
            slot.count = self.optimizer.state[slot.p]["step"] = t

    def _rows(self, grads: dict[str, Any]) -> list[Rows]:
        """Step copies of the rows that sparse gradients have, and leave None or dense gradients in their places."""
        stepped = []
        for i, slot in enumerate(self.slots):
            g, where = grads[slot.name], f"grads[{slot.name!r}]"
            if not isinstance(g, torch.Tensor):
                if g is not None and self.rules.only_rows:
                    raise TypeError(f"{where}: expected a sparse gradient, got a dense one; use ravine.torch.Adam")
                continue
            if self.rule in self.rules.densified and g.layout is torch.sparse_coo:
                grads[slot.name] = array_of(g.to_dense(), where, False)
                continue
            if self.rule not in self.rules.of_rows or g.layout is not torch.sparse_coo:
                foreign.adopt(g, where, False)  # refuses it
            grads[slot.name] = None
            stepped.append(self._stepped(i, slot, g, where))
        return stepped

    def _stepped(self, i: int, slot: Slot, g: torch.Tensor, where: str) -> Rows:
        """Return copies of the rows of a parameter and its states, after their update."""
        t, axes, shape = int(self.updates[i]), g.sparse_dim(), tuple(slot.p.shape)
        if tuple(g.shape) != shape:
            raise ValueError(f"{where}: expected shape {shape} like its parameter, got {tuple(g.shape)}")
        values = self.rules.values_of(slot.group, t, slot.states)
        if decay := values.get("l2") or values.get("weight_decay"):
            raise ValueError(f"{where}: sparse, but weight_decay = {decay} would move every row; set it to 0")
        indices = np.ravel_multi_index(tuple(g._indices().cpu().numpy()), shape[:axes])
        given = RowSparse(indices.reshape(-1), array_of(g._values(), where, False))
        parameter, *states = slot.arrays
        rows = Rows.of(self.backend, parameter, tuple(states), given, axes)
        params = {slot.name: rows.copies[0]}
        engine = self.rules.make_engine(self.backend, self.rule, params, [0], lambda *_: rows.copies[1:])
        for name, value in values.items():
            engine.set_hyper(0, name, value)
        engine.set_counters(0, [t])
        engine.step({slot.name: rows.gradient})
        return rows
