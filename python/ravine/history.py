"""What a run did: numbers by name and step, recorded without waiting for the GPU."""

from __future__ import annotations

import csv
import operator
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias

import numpy as np

from ravine import _core
from ravine.backends import array_module, cpu, is_array
from ravine.backends.foreign import adopt, as_array
from ravine.loss_scale import DynamicLossScale

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ravine.optimizers import Optimizer

__all__ = ["Curve", "History"]

Numbers: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

#: Records that may wait on a GPU. What a step reports takes 512 bytes there and up.
_HELD = 4096


class Curve(NamedTuple):
    """One name's numbers: ``steps`` (int64) and ``values`` (float64), NumPy arrays of one length."""

    steps: np.ndarray[Any, np.dtype[np.int64]]
    values: Numbers


@dataclass
class _Row:
    """One record; until it is settled, step may be the info that knows it, and numbers may be on a device."""

    step: Any
    info: Any
    numbers: dict[str, Any]
    #: Several numbers in one array, which may be on a device.
    vectors: list[tuple[list[str], Any]] = field(default_factory=list)
    #: What the user has given at this step so far, by name.
    here: frozenset[str] = frozenset()

    def settle(self) -> None:
        """Ask for all numbers, and wait for them."""
        info, numbers = self.info, {}
        if info is not None:
            numbers["lr"] = float(info.lr)
            if info.grad_norm is not None:
                numbers["grad_norm"] = float(info.grad_norm)
            if info.nonfinite is not None or info.skipped:
                numbers["skipped"] = float(info.skipped)
            if info.nonfinite is not None:
                numbers["nonfinite"] = float(sum(count for count, _ in info.nonfinite.values()))
        self.numbers = numbers | {name: float(value) for name, value in self.numbers.items()}
        for names, values in self.vectors:
            self.numbers |= zip(names, cpu.put(values).tolist(), strict=True)
        self.vectors = []
        self.step = int(getattr(self.step, "step", self.step))
        self.info = None


class History:
    """Record numbers by name: what a step reports, and what the loop knows.

    ``history["loss"]`` gives steps and values as NumPy arrays. Names may come at different steps, such as a validation
    loss once an epoch.

    Recording does not wait for a GPU. What the step reports there, and losses that are CuPy arrays, are copied on the
    device, behind what computes them, and fetched when the history is looked at, or 4096 records later. (``info`` alone
    is remembered for 16 steps.) Only the call that a CUDA graph captured can be recorded, not its replays.

    >>> w = np.array([2.0]); opt, history = rv.SGD(w, lr=0.25), rv.History()
    >>> for _ in range(2):
    ...     loss, grads = (w**2).sum(), 2 * w
    ...     history.record(opt.step(grads), loss=loss)
    >>> history.record(validation_loss=7)
    >>> history["loss"].steps, history["loss"].values
    (array([1, 2]), array([4., 1.]))
    >>> history
    History(3 records, steps 1 to 2: lr, loss, validation_loss)
    """

    def __init__(self) -> None:
        self._rows: list[_Row] = []
        self._settled = 0

    def record(self, info: Any = None, /, *, step: int | None = None, **values: Any) -> None:
        """Record one step's numbers, or some that came later.

        From ``info`` come ``lr``; ``grad_norm``, if the step measured it; ``skipped`` (0 or 1) and ``nonfinite`` (how
        many elements), if it checked.

        Args:
            info: what ``opt.step`` returned.
            step: which step the numbers belong to; info's by default. Without either, the last record's.
            values: numbers by name: Python's, NumPy's, or arrays of one element, CuPy's too.

        Raises:
            TypeError: a value that is no number, or an info that is none. Nothing was recorded.
            ValueError: neither info nor step, and no record before, or a name that it has already.

        >>> history = rv.History()
        >>> history.record(step=100, accuracy=0.5)
        >>> history["accuracy"].steps
        array([100])
        """
        if info is not None and not (hasattr(info, "lr") and hasattr(type(info), "step")):
            raise TypeError(f"info: expected what opt.step returned, got {type(info).__name__}; give numbers by name")
        numbers = {name: _number(name, value) for name, value in values.items()}
        at = info if step is None else operator.index(step)
        if at is None:
            if not self._rows or self._rows[-1].here & values.keys():
                raise ValueError(
                    f"step: expected info or step, since {', '.join(values) or 'it'} would come "
                    f"{'first' if not self._rows else 'again at the same step'}"
                )
            at = self._rows[-1].step
        here = self._rows[-1].here if info is None and step is None else frozenset[str]()
        self._append(_Row(at, info, numbers, here=here | numbers.keys()))

    def _append(self, row: _Row) -> None:
        if hasattr(row.info, "keep"):
            row.info.keep()
        self._rows.append(row)
        if len(self._rows) - self._settled >= _HELD:
            self._settle()

    def step(
        self, opt: Optimizer, grads: Any = ..., /, *, grad_scale: float | DynamicLossScale | None = None, **values: Any
    ) -> _core.StepInfo:
        r"""Step, and record with it the norm of each gradient, parameter and update.

        .. math:: \|g_k\|, \qquad \|w_k\|, \qquad \|w_k - w_k^-\|

        Their names are ``grad_norm/hidden.w``, ``param_norm/hidden.w`` (after the step) and ``update_norm/hidden.w``.
        Gradients are those of the loss, divided by ``grad_scale`` and not yet clipped; of one that is None there is no
        norm. Updates are what the parameters changed by, as stored: 0 of a step that was left out.

        This takes a copy of the parameters, in the dtype that they compute in, while it steps, and reads gradients and
        parameters once more. ``record(opt.step(grads))`` costs none of it; take turns, such as one step in a hundred.

        Args:
            opt: the optimizer.
            grads, grad_scale: as of ``opt.step``.
            values: other numbers of this step by name, as of `record`.

        Returns:
            What ``opt.step`` returns.

        Raises:
            TypeError: a value that is no number. Nothing was recorded, and no step taken.
            Exception: what ``opt.step`` raises. Nothing was recorded.

        >>> w = np.array([3.0, 4.0]); opt, history = rv.SGD({"w": w}, lr=0.5), rv.History()
        >>> _ = history.step(opt, {"w": w.copy()}, loss=12.5)
        >>> {name: float(history[name].values[0]) for name in history.names[2:]}
        {'grad_norm/w': 5.0, 'param_norm/w': 2.5, 'update_norm/w': 2.5}
        """
        numbers = {name: _number(name, value) for name, value in values.items()}
        engine, backend = opt._engine, opt._backend
        scale: Any = grad_scale.value if isinstance(grad_scale, DynamicLossScale) else grad_scale
        if is_array(scale):
            scale = scale.astype(np.float64)  # a copy: the step changes it
        sums, divisor = (engine.sums, engine.accumulated or 1.0) if grads is ... else ([], 1.0)
        parameters = list(zip(engine.names, engine.parameters, strict=True))
        updates = [(name, w.astype(np.float64 if w.dtype == np.float64 else np.float32)) for name, w in parameters]

        def whole() -> _core.StepInfo:
            info = opt.step(grads, grad_scale=grad_scale)
            for (_, update), (_, w) in zip(updates, parameters, strict=True):
                update -= w.astype(update.dtype, copy=False)
            gradients = dict(zip(engine.names, sums, strict=True)) if grads is ... else dict(_core.flatten(grads))
            dtypes = dict(zip(engine.names, [w.dtype for w in engine.arrays], strict=True))
            of_each = {name: (gradients[name], dtypes[name]) for name in engine.names if gradients[name] is not None}
            present = [(name, adopt(as_array(g, dtype), name, False)) for name, (g, dtype) in of_each.items()]
            norms = backend.tensor_norms(present)
            norms = norms if divisor == 1.0 else norms / divisor
            norms = norms if scale is None else norms / scale
            vectors = [
                ([f"grad_norm/{name}" for name, _ in present], norms),
                ([f"param_norm/{name}" for name, _ in parameters], backend.tensor_norms(parameters)),
                ([f"update_norm/{name}" for name, _ in updates], backend.tensor_norms(updates)),
            ]
            self._append(_Row(info, info, numbers, vectors, frozenset(numbers)))
            return info

        return _core.uninterrupted(whole)

    @property
    def names(self) -> list[str]:
        """What was recorded, in the order of first appearance."""
        return list(dict.fromkeys(name for row in self._settle() for name in row.numbers))

    def __getitem__(self, name: str) -> Curve:
        rows = [row for row in self._settle() if name in row.numbers]
        if not rows:
            raise KeyError(f"{name!r} was not recorded; there are {self.names}")
        steps = np.array([row.step for row in rows], np.int64)
        return Curve(steps, np.array([row.numbers[name] for row in rows], np.float64))

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __len__(self) -> int:
        """How many records were made."""
        return len(self._rows)

    def __repr__(self) -> str:
        rows = self._settle()
        if not rows:
            return "History(no records)"
        steps = [row.step for row in rows]
        return f"History({len(rows)} records, steps {min(steps)} to {max(steps)}: {', '.join(self.names)})"

    def as_arrays(self) -> dict[str, Curve]:
        """Return the curves of all names.

        >>> history = rv.History()
        >>> history.record(step=1, loss=0.5)
        >>> history.as_arrays()
        {'loss': Curve(steps=array([1]), values=array([0.5]))}
        """
        return {name: self[name] for name in self.names}

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write a row per record: the step, then a column per name, empty where nothing was recorded.

        Args:
            path: the file, overwritten. Numbers are written so that reading gives the same bits.
        """
        names = self.names
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["step", *names])
            for row in self._rows:
                writer.writerow([row.step, *(repr(row.numbers[n]) if n in row.numbers else "" for n in names)])

    @classmethod
    def from_csv(cls, path: str | PathLike[str]) -> Self:
        """Return the history that `to_csv` wrote.

        Args:
            path: the file; the first column is ``step``, an integer, the others numbers or empty.

        Raises:
            ValueError: another first column, or a cell that is no number, with its line and column.

        >>> history = rv.History(); history.record(step=3, loss=0.25)
        >>> history.to_csv("run.csv"); rv.History.from_csv("run.csv")["loss"]
        Curve(steps=array([3]), values=array([0.25]))
        """
        history = cls()
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            if header[:1] != ["step"] or len(set(header)) < len(header):
                raise ValueError(f"{path}: expected a header of step and different names, got {header}")
            for cells in filter(None, reader):
                where = f"{path}, line {reader.line_num}"
                if len(cells) != len(header):
                    raise ValueError(f"{where}: expected {len(header)} cells, got {len(cells)}")
                named = list(zip(header, cells, strict=True))
                numbers = {name: _parsed(float, cell, where, name) for name, cell in named[1:] if cell}
                history._rows.append(_Row(_parsed(int, cells[0], where, "step"), None, numbers))
        if history._rows:
            history._rows[-1].here = frozenset(history._rows[-1].numbers)
        return history

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {
            "_rows": [_Row(row.step, None, dict(row.numbers), here=row.here) for row in self._settle()]
        }

    def state_dict(self) -> dict[str, Any]:
        """Return all records in lists of numbers; waits for the GPU, if some are there.

        >>> history = rv.History(); history.record(step=3, loss=0.5)
        >>> history.state_dict()
        {'format': 1, 'steps': [3], 'names': ['loss'], 'counts': [1], 'rows': [0], 'values': [0.5], 'open': ['loss']}
        """
        names, rows = self.names, self._settle()
        of_name = [[(i, row.numbers[name]) for i, row in enumerate(rows) if name in row.numbers] for name in names]
        return {
            "format": 1,
            "steps": [row.step for row in rows],
            "names": names,
            "counts": [len(pairs) for pairs in of_name],
            "rows": [i for pairs in of_name for i, _ in pairs],
            "values": [value for pairs in of_name for _, value in pairs],
            "open": sorted(rows[-1].here) if rows else [],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Have the records of a state, in the place of those that are here.

        Args:
            state: what `state_dict` returned.

        Raises:
            ValueError: something else. Nothing was loaded.

        >>> history, other = rv.History(), rv.History(); history.record(step=3, loss=0.5)
        >>> other.load_state_dict(history.state_dict()); other
        History(1 records, steps 3 to 3: loss)
        """
        try:
            if state["format"] != 1:
                raise ValueError(f"format {state['format']!r}")
            rows = [_Row(operator.index(step), None, {}) for step in state["steps"]]
            places = zip(map(operator.index, state["rows"]), map(float, state["values"]), strict=True)
            for name, count in zip(state["names"], state["counts"], strict=True):
                for _ in range(count):
                    i, value = next(places)
                    if i < 0:
                        raise IndexError(i)
                    rows[i].numbers[str(name)] = value
            if next(places, None) is not None:
                raise ValueError("numbers of no name")
            here = frozenset(map(str, state["open"]))
            if rows:
                rows[-1].here = here
        except (KeyError, IndexError, StopIteration, TypeError, ValueError) as error:
            said = f"{type(error).__name__}: {error}"
            raise ValueError(f"state: expected what state_dict() returned, got {said}. Nothing was loaded.") from error
        self._rows, self._settled = rows, len(rows)

    def _settle(self) -> list[_Row]:
        """Fetch what still waits; return all records."""
        for row in self._rows[self._settled :]:
            row.settle()
        self._settled = len(self._rows)
        return self._rows


def _number(name: str, value: Any) -> Any:
    """Return a float, or a copy on the device of what is there."""
    if getattr(value, "size", 1) != 1:
        raise TypeError(f"{name}: expected a number, got an array of shape {value.shape}; record its mean or its norm")
    if is_array(value) and array_module(value) is not np:
        if value.dtype.kind not in "fiub":
            raise TypeError(f"{name}: expected a real number, got an array of {value.dtype}")
        return value.reshape(()).copy()  # the caller may overwrite it; float() would wait
    try:
        if isinstance(value, str | bytes | complex):
            raise TypeError
        return float(value.item() if isinstance(value, np.ndarray) else value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {value!r}") from None


def _parsed(kind: type, cell: str, where: str, name: str) -> Any:
    try:
        return kind(cell)
    except ValueError:
        raise ValueError(f"{where}, column {name}: expected a number, got {cell!r}") from None
