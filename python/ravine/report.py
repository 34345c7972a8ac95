"""What a step reports that the core took a part of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from ravine import _core

__all__ = ["StepInfo"]


class StepInfo:
    """What the core said of its part, put right for the whole; attributes as of `ravine.Optimizer.step`.

    Args:
        info: the core's answer.
        lr: the learning rate, if the core had another.
        places: name → the index in the parameter, in C order, of an element of the gradient that the core had.
    """

    def __init__(
        self, info: Any, *, lr: float | None = None, places: Mapping[str, Callable[[int], int]] | None = None
    ) -> None:
        self._info, self._places = info, places or {}
        self._lr: float = info.lr if lr is None else lr

    def keep(self) -> None:
        """Have it remembered for as long as this object lives."""
        if hasattr(self._info, "keep"):
            self._info.keep()

    @property
    def step(self) -> int:
        """Steps completed so far, this one included."""
        return int(self._info.step)

    @property
    def lr(self) -> float:
        """The learning rate of the first parameter's group."""
        return self._lr

    @property
    def grad_norm(self) -> float | None:
        """The norm of all gradients, if it was needed."""
        norm: float | None = self._info.grad_norm
        return norm

    @property
    def skipped(self) -> bool:
        """Whether nothing was done: gradients were not finite, or all micro-batches of weight 0."""
        return bool(self._info.skipped)

    @cached_property
    def nonfinite(self) -> dict[str, tuple[int, int]] | None:
        """If it was checked: name → how many elements, C-order index of the first."""
        found: dict[str, tuple[int, int]] | None = self._info.nonfinite
        if found is None:
            return None
        return {
            name: (count, self._places[name](first) if name in self._places else first)
            for name, (count, first) in found.items()
        }

    def error(self) -> FloatingPointError:
        """Return what ``nonfinite="raise"`` raises."""
        return FloatingPointError(
            f"grads: not finite, or beyond what the states can hold: {self.nonfinite} (name: count, first index in "
            "C order); nothing was changed"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Be copied as what it says; the places are functions."""
        found = None if self.nonfinite is None else dict(self.nonfinite)
        return _core.StepInfo, (self.step, self.lr, self.grad_norm, self.skipped, found)

    def __repr__(self) -> str:
        names = ("step", "lr", "grad_norm", "skipped", "nonfinite")
        return f"StepInfo({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"
