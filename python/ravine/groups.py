"""The hyperparameters of an optimizer as they are now, a mapping for each group of parameters."""

from __future__ import annotations

import bisect
import copy
import difflib
import fnmatch
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeAlias, overload

if TYPE_CHECKING:
    from ravine.optimizers import Optimizer

__all__ = ["Group", "GroupList", "Past", "Rates", "checked_past", "matches"]


def matches(names: Sequence[str], patterns: Sequence[str]) -> list[list[int]]:
    """Give, for each pattern, the numbers of the names that match it, in order.

    Only names that hold the pattern's longest literal part are tried, so thousands of patterns cost little more than
    what they match.

    Args:
        names: of parameters.
        patterns: globs on them.

    >>> from ravine.groups import matches
    >>> matches(["a.w", "a.b", "c.w"], ["*.w", "a.*"])
    [[0, 2], [0, 1]]
    """
    text = "\n".join(names)
    starts = list(itertools.accumulate((len(name) + 1 for name in names), initial=0))
    found = []
    for pattern in patterns:
        part = max(_WILD.split(pattern), key=len)
        holding: Iterable[int] = range(len(names))
        if part:
            places = (place.start() for place in re.finditer(re.escape(part), text))
            holding = dict.fromkeys(bisect.bisect_right(starts, place) - 1 for place in places)
        match = re.compile(fnmatch.translate(pattern)).match
        found.append([i for i in holding if match(names[i])])
    return found


#: What of a pattern is not literal: sets of characters, and wildcards.
_WILD = re.compile(r"\[!?\]?[^\]]*\]|[*?\[]")

Past: TypeAlias = tuple[float, int, float]
"""Of a number that corrects a bias: what it was in a parameter's first updates, how many, the product over others."""


def checked_past(past: Any, t: int) -> Past:
    """Return such a triple of what a state has, of a parameter that was updated t times.

    Args:
        past: ``base``, ``constant`` and ``rest``.
        t: the number of updates.

    Raises:
        ValueError: it cannot be one.

    >>> from ravine.groups import checked_past
    >>> checked_past({"base": 0.9, "constant": 2, "rest": 0.5}, 3)
    (0.9, 2, 0.5)
    """
    try:
        base, constant, rest = float(past["base"]), past["constant"], float(past["rest"])
        fits = constant == int(constant) and 0 <= constant <= t and 0 <= base < math.inf
    except (IndexError, KeyError, OverflowError, TypeError, ValueError):
        fits = False
    if not fits or not 0 <= rest <= 1 or (constant == t and rest != 1):
        expected = f"base: a number >= 0, constant: a count up to {t}, rest: a product in [0, 1]"
        raise ValueError(f"expected {{{expected}}}, got {past!r}")
    return base, int(constant), rest


class Rates:
    """The learning rates of groups: ``lr``, a number or what a schedule says, times ``lr_scale``.

    Args:
        values: of each group, its values; ``lr_scale`` is among them if it was given.

    >>> from ravine.groups import Rates
    >>> rates = Rates([{"lr_scale": 0.5}]); rates.product(0, 0.3), rates.lr(0, 0.15)
    (0.15, 0.3)
    """

    def __init__(self, values: Sequence[Mapping[str, Any]]) -> None:
        self._values = values
        #: Of each group, rates before the factor by those after it: to divide would lose the last bit.
        self._made: list[dict[float, float]] = [{} for _ in values]

    def scale(self, group: int) -> float:
        """Return the factor of a group."""
        return float(self._values[group].get("lr_scale", 1.0))

    def product(self, group: int, lr: float) -> float:
        """Return the rate of a group's steps."""
        scale, made = self.scale(group), self._made[group]
        if scale == 1:
            return lr
        made.pop(lr * scale, None)
        made[lr * scale] = lr
        if len(made) > _REMEMBERED:
            del made[next(iter(made))]
        return lr * scale

    def lr(self, group: int, product: float) -> float:
        """Return what `product` was made of."""
        scale = self.scale(group)
        return product if scale in (0, 1) else self._made[group].get(product, product / scale)


#: The present step's rate, the last one's, and some of steps that did not happen.
_REMEMBERED = 4


class Group(Mapping[str, Any]):
    """The values of the parameters that share them, by the names of the optimizer's arguments.

    Reading gives the present value: of a schedule, that of the last step. Setting holds from the next step on, and is
    saved in checkpoints. Switches (``maximize``, ``bias_correction``, …) make the formula, and can only be read.

    ``lr_scale`` (1) multiplies ``lr``, whether that is a number or a schedule's. It can be read and set in every group,
    and is listed in those that were given one.

    Args:
        optimizer: whose they are; ``opt.groups`` makes these.
        number: which group.

    >>> opt = rv.Lion({"w": np.ones(2), "b": np.ones(2)}, weight_decay=0.1, groups=[("b", {"weight_decay": 0.0})])
    >>> opt.groups[1]["lr"] = 0.5; opt.groups[1]
    Group(['b'], lr=0.5, betas=(0.9, 0.99), weight_decay=0.0, l2=0.0)
    """

    def __init__(self, optimizer: Optimizer, number: int) -> None:
        self._optimizer, self._number = optimizer, number

    @property
    def names(self) -> list[str]:
        """The dotted names of its parameters."""
        engine, groups = self._optimizer._engine, self._optimizer._group_of
        return [name for name, group in zip(engine.names, groups, strict=True) if group == self._number]

    def __getitem__(self, name: str) -> Any:
        if name == "lr":
            return self._optimizer._rate(self._number)
        if name == "lr_scale":
            return self._optimizer._rates.scale(self._number)
        parts = self._parts(name)
        numbers = tuple(self._optimizer._engine.hyper(self._number, part) for part in parts)
        if isinstance(self._values[name], tuple | list):
            return numbers
        return bool(numbers[0]) if self._optimizer._is_switch(parts[0]) else numbers[0]

    def __setitem__(self, name: str, value: Any) -> None:
        """Set a value from the next step on.

        Raises:
            KeyError: a name that the optimizer has not, with those that are near.
            ValueError: a value out of range, a switch, or one that a schedule sets. Nothing was changed.
            TypeError: a value that is no number. Nothing was changed.
        """
        parts, optimizer = self._parts(name), self._optimizer
        if name == "lr_scale":
            optimizer._set_number(self._number, name, optimizer._checked_scale(self._number, value))
            return
        if self._optimizer._is_switch(parts[0]):
            raise ValueError(f"{name}: it makes the formula, and cannot change while it runs; make a new optimizer")
        for group, scheduled, schedule in optimizer._scheduled:
            if group == self._number and scheduled in parts:
                cure = ", or set lr_scale, which multiplies it" if name == "lr" else ""
                raise ValueError(
                    f"{name}: the schedule {schedule!r} sets it; give the optimizer a number to set it by hand{cure}"
                )
        numbers = optimizer._numbers(name, value)
        for part, number in numbers.items():
            optimizer._check_number(self._number, part, number)
        for part, number in numbers.items():
            optimizer._set_number(self._number, part, number)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __copy__(self) -> Self:
        return copy.deepcopy(self)  # with an optimizer of its own

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in self.items() if value is not False)
        return f"Group({self.names}, {values})"

    @property
    def _values(self) -> dict[str, Any]:
        return self._optimizer._values[self._number]

    def _parts(self, name: str) -> list[str]:
        """Give the core's names for an argument."""
        if name not in self._values and name != "lr_scale":
            near = difflib.get_close_matches(str(name), {**self._values, "lr_scale": 1.0}, n=3)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {list(self._values)}"
            raise KeyError(f"{type(self._optimizer).__name__} has no {name!r} in its groups; {hint}")
        return self._optimizer._parts(name)


class GroupList(Sequence[Group]):
    """All groups of an optimizer, by number; or by a pattern that matches all of a group's parameters, and no others.

    Args:
        optimizer: whose they are; ``opt.groups`` makes this.

    >>> opt = rv.SGD({"w": np.ones(2), "b": np.ones(2)}, lr=0.5, groups=[("b", {"lr": 0.25})])
    >>> opt.groups["b"]["lr"], [group.names for group in opt.groups]
    (0.25, [['w'], ['b']])
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._groups = [Group(optimizer, number) for number in range(len(optimizer._values))]

    @overload
    def __getitem__(self, key: int | str) -> Group: ...
    @overload
    def __getitem__(self, key: slice) -> list[Group]: ...
    def __getitem__(self, key: int | str | slice) -> Group | list[Group]:
        if not isinstance(key, str):
            return self._groups[key]
        names = [name for group in self._groups for name in group.names]
        matching = {names[i] for i in matches(names, [key])[0]}
        for group in self._groups:
            if matching and matching == {*group.names}:
                return group
        if not matching:
            near = difflib.get_close_matches(key, names, n=3)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {names}"
            raise KeyError(f"groups: {key!r} matches no parameter; {hint}")
        numbers = [i for i, group in enumerate(self._groups) if matching & {*group.names}]
        raise KeyError(
            f"groups: {key!r} matches {sorted(matching)}, which is no whole group: see opt.groups{numbers[:1]}.names, "
            "and the option groups= to divide them"
        )

    def __len__(self) -> int:
        return len(self._groups)

    def __copy__(self) -> Self:
        return copy.deepcopy(self)  # with an optimizer of its own

    def __repr__(self) -> str:
        return repr(self._groups)
