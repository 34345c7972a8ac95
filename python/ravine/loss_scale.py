"""Dynamic loss scaling: gradients in float16 without underflow."""

from __future__ import annotations

import math
import operator
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ravine.backends import cpu

if TYPE_CHECKING:
    from ravine._core import StepInfo
    from ravine.optimizers import Optimizer

__all__ = ["DynamicLossScale"]


class DynamicLossScale:
    r"""A factor for the loss that keeps float16 gradients from underflow, and finds its size by itself.

    .. math:: s \leftarrow \begin{cases}
        \max(s \cdot \text{backoff},\, \text{min}) & \text{if some gradient is not finite} \\
        \min(s \cdot \text{growth},\, \text{max}) & \text{else, after } n \text{ steps in a row} \end{cases}

    Multiply the loss, or the gradient that the backward pass begins with, by ``value``, and give the optimizer the
    scaled gradients and this object. The step divides them by the value before anything else, so that checks, norms and
    clipping see true gradients; leaves itself out if one is not finite, whatever ``nonfinite`` says; and changes the
    value afterwards. All of its numbers are powers of two: dividing is exact, but for results below the smallest normal
    number.

    Each optimizer needs one of its own. On a GPU the value stays there, and a step waits for nothing.

    Args:
        init_scale: s at first, a power of two (2¹⁶). In float16 it is infinite: multiply in float32.
        growth_factor: a power of two ≥ 2 (2).
        backoff_factor: a power of two ≤ ½ (½).
        growth_interval: n ≥ 1 (2000).
        min_scale: the least s, a power of two (1). There, steps are still left out.
        max_scale: the largest s, a power of two (2²⁴).

    Raises:
        ValueError: a number that is no power of two from 2⁻¹⁰⁰ to 2¹⁰⁰, or limits that init_scale does not lie between.
        TypeError: an interval that is no whole number.

    Source: Micikevicius et al., "Mixed Precision Training", 2018, section 3.2; names and defaults are those of
    torch.amp.GradScaler, which has no limits.

    >>> w = np.ones(2, np.float16); opt, scale = rv.SGD(w, lr=0.5), rv.DynamicLossScale(2**14)
    >>> opt.step((w * scale.value).astype(np.float16), grad_scale=scale).skipped, w, scale.value
    (False, array([0.5, 0.5], dtype=float16), 16384.0)
    >>> opt.step(np.array([np.inf, 1], np.float16), grad_scale=scale).skipped, w, scale.value
    (True, array([0.5, 0.5], dtype=float16), 8192.0)
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        *,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        min_scale: float = 1.0,
        max_scale: float = 2.0**24,
    ) -> None:
        value = _power("init_scale", init_scale)
        self._growth, self._backoff = _power("growth_factor", growth_factor), _power("backoff_factor", backoff_factor)
        self._interval = operator.index(growth_interval)
        self._min, self._max = _power("min_scale", min_scale), _power("max_scale", max_scale)
        if self._growth < 2:
            raise ValueError(f"growth_factor: expected a power of two >= 2, got {growth_factor!r}")
        if self._backoff > 0.5:
            raise ValueError(f"backoff_factor: expected a power of two <= 0.5, got {backoff_factor!r}")
        if not 1 <= self._interval < 2**63:
            raise ValueError(f"growth_interval: expected a whole number >= 1, got {growth_interval!r}")
        self._check_limits("init_scale", value)
        #: The value, the good steps in a row, and the optimizer and its count at a step whose outcome is not in them
        #: yet: one attribute, so that it changes as a whole wherever a KeyboardInterrupt comes.
        self._now: tuple[float, int, tuple[Optimizer, int] | None] = (value, 0, None)
        #: Where the numbers are on a device, once a step there has taken them.
        self._there: Any = None
        self._owner: weakref.ref[Optimizer] | None = None

    @property
    def value(self) -> Any:
        """What to multiply the loss by for the next step: a float.

        Once a step has taken CuPy's gradients, it is a float32 array without axes that stays on the GPU, always the
        same one, which each step changes; ``float(scale.value)`` waits for it.
        """
        return self._read()[0] if self._there is None else self._there.value

    @property
    def good_steps(self) -> int:
        """How many steps in a row were done since the value was changed last; asks the GPU, if it is there."""
        return self._read()[1]

    def state_dict(self) -> dict[str, Any]:
        """Return what changes while it runs, in plain numbers; waits for the GPU, if it is there.

        >>> rv.DynamicLossScale(1024).state_dict()
        {'format': 1, 'value': 1024.0, 'good_steps': 0}
        """
        value, good = self._read()
        return {"format": 1, "value": value, "good_steps": good}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned; factors, interval and limits are this object's own.

        Args:
            state: ``format``, ``value`` and ``good_steps``.

        Raises:
            ValueError: another format, a value that is no power of two or beyond the limits, no count. Nothing was
                loaded.

        >>> scale = rv.DynamicLossScale()
        >>> scale.load_state_dict({"format": 1, "value": 8.0, "good_steps": 3}); scale.value
        8.0
        """
        missing = [key for key in ("format", "value", "good_steps") if key not in state]
        if missing or state["format"] != 1:
            got = f"missing {missing}" if missing else f"format {state['format']!r}"
            raise ValueError(f"state: expected what state_dict() returned, format 1, got {got}. Nothing was loaded.")
        value, good = _power("state['value']", state["value"]), operator.index(state["good_steps"])
        self._check_limits("state['value']", value)
        if not 0 <= good < self._interval:
            raise ValueError(f"state['good_steps']: expected a count below {self._interval}, got {good}")
        if self._there is not None:
            self._there.set(value, good)
        self._now = value, good, None

    def __getstate__(self) -> dict[str, Any]:
        """Give its numbers: a copy belongs to no optimizer yet, and to no GPU."""
        value, good = self._read()
        return vars(self) | {"_now": (value, good, None), "_there": None, "_owner": None}

    def __repr__(self) -> str:
        value, good = self._read()
        return f"DynamicLossScale({value!r}, {good} of {self._interval} steps)"

    def _check_limits(self, name: str, value: float) -> None:
        if not self._min <= value <= self._max:
            raise ValueError(
                f"{name}: expected a number from min_scale={self._min} to max_scale={self._max}, got {value}"
            )

    def _read(self) -> tuple[float, int]:
        if self._there is not None:
            here: tuple[float, int] = self._there.get()
            return here
        value, good, running = self._now
        if running is not None:
            # Interrupted between the step and what follows. One that was left out is as if it had not begun.
            optimizer, before = running
            if optimizer.steps > before:
                value, good = self._after(value, good, skipped=False)
            self._now = value, good, None
        return value, good

    def _step(self, optimizer: Optimizer, run: Callable[[Any, bool], StepInfo]) -> StepInfo:
        """Run a step with the scale, and leave to be left out; change the value then."""
        owner = self._owner() if self._owner else None
        if owner is not None and owner is not optimizer:
            raise ValueError(
                "grad_scale: this DynamicLossScale belongs to another optimizer, whose steps change its value; "
                "make one for each"
            )
        backend = optimizer._backend
        if backend is cpu:
            value, good = self._read()
            self._now, self._there = (value, good, (optimizer, optimizer.steps)), None
            try:
                info = run(value, True)
                if not info.skipped or info.nonfinite:  # else all micro-batches had weight 0: nothing overflowed
                    value, good = self._after(value, good, skipped=info.skipped)
                self._now = value, good, None
            finally:
                self._read()
        else:
            if self._there is None or self._there.device is not backend.device:
                value, good = self._read()
                self._there = backend.loss_scale(
                    value, good, self._growth, self._backoff, self._interval, self._min, self._max
                )
            info = run(self._there, True)
        if owner is None:
            self._owner = weakref.ref(optimizer)
        return info

    def _after(self, value: float, good: int, *, skipped: bool) -> tuple[float, int]:
        """Give both after a step; `judge` in measure.cu does the same."""
        if skipped:
            return max(value * self._backoff, self._min), 0
        return (value, good + 1) if good + 1 < self._interval else (min(value * self._growth, self._max), 0)


def _power(name: str, value: Any) -> float:
    """Return a power of two as a float."""
    expected = f"{name}: expected a power of two from 2**-100 to 2**100, got {value!r}"
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(expected) from None
    if isinstance(value, str) or not 2.0**-100 <= number <= 2.0**100 or math.frexp(number)[0] != 0.5:
        raise ValueError(expected)
    return number
