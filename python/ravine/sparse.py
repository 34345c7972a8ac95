"""Gradients of some rows of a table, and the step that touches no others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ravine import _core, backends, trees
from ravine.backends import cpu, foreign
from ravine.report import StepInfo

if TYPE_CHECKING:
    from ravine.optimizers import Optimizer

__all__ = ["RowSparse"]

#: Rules whose update of an element with a gradient of 0 is no update, but for what they forget meanwhile.
_RULES = ("sgd", "adagrad", "adam")
#: Values that are 0 for a parameter with such gradients, and what they do otherwise.
_OF_ALL_ROWS = {
    "weight_decay": "would move every row",
    "l2": "would move every row",
    "initial": "is added in the parameter's first update, to every row",
}
_WITH = "SGD without momentum, Adagrad(accumulate='sum'), and Adam or AdamW without amsgrad"


@dataclass(frozen=True, eq=False)
class RowSparse:
    r"""The gradient of some rows of a parameter, such as an embedding table; the others have none.

    .. math:: g_r = \sum_{i:\, \mathrm{indices}_i = r} \mathrm{values}_i

    A row may come as often as it was looked up: its values are added in order of occurrence, in float64, and rounded
    once to the parameter's compute dtype. ``opt.step({"emb": rv.RowSparse(rows, values), "w": g})`` then updates these
    rows and their states alone, by the very rule, with the bits of a dense step on these rows at the same t. It costs
    what the rows cost, whatever the size of the table.

    The update is lazy: a row that is not there stays as it is, and so do its moments, which would decay in a dense
    step. t is the parameter's: it counts the steps in which it had a gradient, whichever rows that had. What would move
    untouched rows is refused: momentum, ``weight_decay``, ``l2`` and Adagrad's ``initial`` of that parameter. Rows that
    come seldom would be decayed less than those that come often, which is another regulariser than the one asked for.

    Clipping by value and by norm, and the finite check, see the sums; places in ``info.nonfinite`` are the parameter's.

    Args:
        indices: integers, one axis of length n, each in [0, number of rows); NumPy's, CuPy's or a list. With CuPy's, a
            step waits for the GPU to see them; NumPy's do as well for CuPy parameters, and need no waiting.
        values: array of shape (n, \*shape of a row), in the parameter's dtype and place; float16 or bfloat16 do for
            float32, too.

    Raises:
        TypeError: indices that are no integers, or values that are no array.
        ValueError: shapes that do not fit each other.

    Source: torch.optim.SparseAdam's documentation, "a masked version of the Adam algorithm": the moments and the
    parameter are only updated where the gradient has entries. Its ε is that of ``Adam(eps_hat=True)``.

    >>> table = np.ones((4, 2)); opt = rv.SGD(table, lr=0.5)
    >>> _ = opt.step(rv.RowSparse([3, 1, 3], np.ones((3, 2)))); table
    array([[1. , 1. ],
           [0.5, 0.5],
           [1. , 1. ],
           [0. , 0. ]])
    """

    indices: Any
    values: Any

    def __post_init__(self) -> None:
        indices, values = foreign.adopt(self.indices, "indices", False), foreign.adopt(self.values, "values", False)
        if isinstance(indices, list | tuple):
            indices = np.array(indices, None if len(indices) else np.int64)
        if not backends.is_array(indices) or indices.dtype.kind not in "iu":
            kind = getattr(indices, "dtype", type(indices).__name__)
            raise TypeError(f"indices: expected an array of integers, got {kind}; pass indices.astype(np.int64)")
        if not backends.is_array(values):
            kind = type(values).__name__
            raise TypeError(f"values: expected a NumPy or CuPy array, got {kind}; pass np.asarray(…)")
        if indices.ndim != 1:
            raise ValueError(f"indices: expected one axis, got shape {indices.shape}; pass indices.reshape(-1)")
        if values.ndim == 0 or len(values) != len(indices):
            raise ValueError(
                f"values: expected a row for each of {len(indices)} indices, got shape {values.shape}; "
                "pass values.reshape(len(indices), *shape of a row)"
            )
        object.__setattr__(self, "indices", indices)
        object.__setattr__(self, "values", values)

    def __repr__(self) -> str:
        return f"RowSparse({len(self.indices)} rows of shape {self.values.shape[1:]}, {self.values.dtype})"


@dataclass
class Rows:
    """Rows of a parameter that have a gradient."""

    parameter: Any
    states: tuple[Any, ...]
    #: Their numbers, rising, here and where the parameter is.
    numbers: np.ndarray[Any, np.dtype[np.int64]]
    index: tuple[Any, ...]
    gradient: Any
    #: Copies of them.
    copies: list[Any]

    @classmethod
    def of(cls, backend: Any, parameter: Any, states: tuple[Any, ...], given: RowSparse, axes: int = 1) -> Rows:
        """Sum the gradient, and copy the rows, which the first axes number in C order."""
        xp = backends.array_module(parameter)
        indices = cpu.put(given.indices).astype(np.int64)
        order = np.argsort(indices, kind="stable")  # those of a row in order of occurrence
        ordered = indices[order]
        starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(order)])
        numbers = ordered[starts]
        gradient = backend.empty((len(numbers), *parameter.shape[axes:]), parameter.dtype)
        values, sums = backends.as_reals(given.values), backends.as_reals(gradient)
        backend.sum_rows(values, order, np.append(starts, len(order)), sums)
        index = tuple(backend.put(place) for place in np.unravel_index(numbers, parameter.shape[:axes]))
        copies = [xp.ascontiguousarray(array[index]) for array in (parameter, *states)]
        return cls(parameter, states, numbers, index, gradient, copies)

    def write_back(self) -> None:
        """Put the copies in the rows' places."""
        for array, rows in zip((self.parameter, *self.states), self.copies, strict=True):
            array[self.index] = rows

    def place(self, element: int) -> int:
        """Give the index in the parameter, in C order, of an element of the gradient."""
        width = self.parameter.size // len(self.parameter)
        return int(self.numbers[element // width] * width + element % width)


def has_rows(grads: Any) -> bool:
    """Whether any of the gradients is of some rows only."""
    try:
        return any(isinstance(leaf, RowSparse) for _, leaf in _core.flatten(grads))
    except (TypeError, ValueError):  # no nesting: the step says so
        return False


def step(
    opt: Optimizer, grads: Any, values: list[tuple[int, str, float]], scale: float | None = None, skip: bool = False
) -> Any:
    """Do what ``Optimizer.step`` says: one step of the core over copies of the rows, and the dense parameters.

    With copies, clipping, checks and all rules are the core's, and it sees no difference. All that can go wrong does so
    before they are written back.
    """
    engine, backend = opt._engine, opt._backend
    if backend.capturing():
        raise RuntimeError("step: a captured step cannot take RowSparse gradients; step outside of the graph")
    _check(opt, grads, values)
    for group, name, value in values:
        engine.set_hyper(group, name, value)
    given = dict(_core.flatten(grads))
    bound = dict(zip(engine.names, zip(engine.arrays, engine.states, strict=True), strict=True))
    rows = {name: Rows.of(backend, *bound[name], leaf) for name, leaf in given.items() if isinstance(leaf, RowSparse)}
    params = {name: rows[name].copies[0] if name in rows else parameter for name, (parameter, _) in bound.items()}
    states = [rows[name].copies[1:] if name in rows else list(states) for name, (_, states) in bound.items()]
    other = opt._bound_alike(params, states)

    def settle() -> None:
        for part in rows.values():
            part.write_back()
        backend.copy_counters(engine, other)
        engine.spend(grads)

    def whole() -> StepInfo:
        before = other.steps
        try:
            gradients = {name: rows[name].gradient if name in rows else given[name] for name in params}
            report = other.step(gradients, [], scale, skip)
            info = StepInfo(report, places={name: part.place for name, part in rows.items()})
            if opt._options["nonfinite"] == "raise" and info.skipped and not skip:
                raise info.error()
            settle()
        except KeyboardInterrupt:  # of the caller's own; all or nothing
            if other.steps > before:
                _core.uninterrupted(settle, again=True)
            raise
        return info

    return _core.uninterrupted(whole)


def _check(opt: Optimizer, grads: Any, values: list[tuple[int, str, float]]) -> None:
    """Refuse whatever the step would, and changes nothing."""
    errors: list[Exception] = []
    dense = trees.map(lambda leaf: None if isinstance(leaf, RowSparse) else leaf, grads)
    try:
        opt._engine.check(dense)
        opt._engine.check_fresh(grads)
    except (TypeError, ValueError) as error:
        errors.append(error)
    later = {(group, name): value for group, name, value in values}
    bound = zip(opt._engine.names, opt._engine.arrays, opt._group_of, strict=True)
    groups = {name: (parameter, group) for name, parameter, group in bound}
    for name, leaf in _core.flatten(grads):
        if not isinstance(leaf, RowSparse) or name not in groups:
            continue
        parameter, group = groups[name]
        called = "grads" if name == "params" else f"grads[{name!r}]"
        try:
            _check_rule(opt, called, name)
            for option, effect in _OF_ALL_ROWS.items():
                known = option in opt._flat_values(group)
                if known and later.get((group, option), opt._engine.hyper(group, option)):
                    raise ValueError(
                        f"{called}: RowSparse, but {option} {effect}; pass groups=[({name!r}, {{{option!r}: 0.0}})]"
                    )
            _check_fits(opt, called, parameter, leaf)
        except (TypeError, ValueError) as error:
            errors.append(error)
    if errors:
        raise type(errors[0])("\n".join(map(str, errors)))


def _check_rule(opt: Optimizer, called: str, name: str) -> None:
    if opt._rule not in _RULES:
        raise TypeError(
            f"{called}: expected a dense gradient, got RowSparse: {type(opt).__name__} as configured (rule "
            f"{opt._rule!r}) moves rows that have no gradient. {_WITH} take it; give {name!r} an optimizer of its own"
        )
    if opt._precision is not None:
        raise ValueError(
            f"{called}: expected a dense gradient, got RowSparse: states={opt._precision!r} keeps rows together; "
            f"give {name!r} an optimizer of its own, without it"
        )
    if opt._rounding != "nearest":
        raise ValueError(
            f"{called}: expected a dense gradient, got RowSparse: rounding={opt._rounding!r} knows elements by their "
            f"places; give {name!r} an optimizer of its own, without it"
        )
    following = {"lookahead": opt._lookahead, "average": opt._averaging, "master": opt._master}
    for option, value in following.items():
        if value is not None:
            raise ValueError(
                f"{called}: expected a dense gradient, got RowSparse: {option} would read and write every row; "
                f"give {name!r} an optimizer of its own, without it"
            )


def _check_fits(opt: Optimizer, called: str, parameter: Any, leaf: RowSparse) -> None:
    indices, values = leaf.indices, leaf.values
    if parameter.ndim == 0:
        raise ValueError(f"{called}: RowSparse, but its parameter has no rows; pass a dense gradient")
    if backends.backend_of(values) is not opt._backend:
        raise TypeError(f"{called}: its values are not where the parameter is; see rv.to_device")
    if values.shape[1:] != parameter.shape[1:]:
        raise ValueError(
            f"{called}: expected values of shape {(len(indices), *parameter.shape[1:])}, "
            f"{len(indices)} rows like those of its parameter, got {values.shape}"
        )
    wider = parameter.dtype == np.float32 and values.dtype.name in ("float16", "bfloat16")
    if values.dtype != parameter.dtype and not wider:
        raise TypeError(
            f"{called}: expected values of {parameter.dtype} like its parameter, got {values.dtype}; "
            "convert them with values.astype(w.dtype)"
        )
    here = cpu.put(indices)
    wrong = np.flatnonzero((here < 0) | (here >= len(parameter)))
    if wrong.size:
        raise ValueError(
            f"{called}: expected indices in [0, {len(parameter)}), got {here[wrong[0]]} at place {wrong[0]}"
            + (f" and {wrong.size - 1} more out of range" if wrong.size > 1 else "")
        )
