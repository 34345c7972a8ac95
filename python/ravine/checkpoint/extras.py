"""What a run has besides its optimizer: nets with buffers, random generators, a loss scale, numbers; ``extra=``.

In the header, ``extra`` is a nesting in JSON. null, true, false, whole numbers below 2⁶³, texts and lists stand for
themselves. All else is an object of one key:

=============  ====================================================================================================
``dict``       the dict
``items``      pairs of key and value, of a dict with keys that are no texts
``tuple``      its items
``int``        a larger whole number, in hexadecimal
``float``      in hexadecimal, ``"inf"``, ``"-inf"`` or ``"nan"``
``complex``    real and imaginary part, as floats
``bytes``      in hexadecimal
``number``     one of NumPy's: the dtype's name, and its bytes
``numbers``    the array of a list's numbers, all of them floats, or all whole
``array``      the name of the array in the file; ``complex``: of one whose last axis is real and imaginary part
``state``      what ``state_dict()`` returned
``random``     kind of the generator and its state, a dict
=============  ====================================================================================================
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ravine.backends import backend_of, is_array
from ravine.checkpoint.layout import EXTRA, EXTRA_CODES, DamagedError, Header, dtype_of, in_short

__all__ = ["Plan", "State", "described", "has_buffers", "parsed"]

#: From so many on, a list's numbers are an array.
_MANY = 16


@dataclass(frozen=True)
class Stored:
    """An array in the file, which may stand for complex numbers, or for a list."""

    tensor: str
    dtype: str
    shape: tuple[int, ...]
    is_complex: bool = False
    is_list: bool = False


@dataclass(frozen=True)
class State:
    """What an object's ``state_dict()`` returned."""

    tree: Any


@dataclass(frozen=True)
class Random:
    """A random generator: what it is, and its state."""

    kind: str
    tree: Any


def _has_state(x: Any) -> bool:
    return hasattr(x, "state_dict") and hasattr(x, "load_state_dict") and not isinstance(x, type)


def _kind_of_random(x: Any) -> str | None:
    """Name a generator's kind; None of what is none."""
    if isinstance(x, np.random.Generator):
        return f"Generator({type(x.bit_generator).__name__})"
    if isinstance(x, np.random.BitGenerator):
        return type(x).__name__
    if isinstance(x, np.random.RandomState):
        return f"RandomState({x.get_state(legacy=False)['bit_generator']})"
    return None


def _random_state(x: Any) -> dict[str, Any]:
    if isinstance(x, np.random.RandomState):
        return dict(x.get_state(legacy=False))
    return dict(x.state if isinstance(x, np.random.BitGenerator) else x.bit_generator.state)


def _set_random(x: Any, state: dict[str, Any]) -> None:
    if isinstance(x, np.random.RandomState):
        x.set_state(state)
    elif isinstance(x, np.random.BitGenerator):
        x.state = state
    else:
        x.bit_generator.state = state


def _new_random(kind: str, state: dict[str, Any]) -> Any:
    """Make a generator of NumPy's in that state."""
    outer, _, inner = kind.rstrip(")").rpartition("(")
    made = getattr(np.random, inner, None)
    if not isinstance(made, type) or not issubclass(made, np.random.BitGenerator) or made is np.random.BitGenerator:
        raise ValueError(f"no bit generator {in_short(inner)} in numpy.random")
    bits = made()
    x = {"": bits, "Generator": np.random.Generator(bits), "RandomState": np.random.RandomState(bits)}[outer]
    _set_random(x, state)
    return x


# Saving


def described(extra: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the nesting for the header, and the arrays by their names in the file.

    Raises:
        TypeError: something that no file holds, named by its path. RecursionErrors become ValueErrors.
    """
    _check_names(extra)
    arrays: dict[str, Any] = {}
    try:
        return {name: _written(x, f"extra[{name!r}]", [name], arrays) for name, x in (extra or {}).items()}, arrays
    except RecursionError:
        raise ValueError("extra: nested too deeply, or within itself; save what is needed of it alone") from None


def _check_names(extra: Any) -> None:
    if extra is not None and (not isinstance(extra, Mapping) or not all(isinstance(name, str) for name in extra)):
        raise TypeError(f'extra: expected a dict like {{"net": net, "epoch": 3}}, got {in_short(extra)}')


def _written(x: Any, where: str, path: list[str], arrays: dict[str, Any]) -> Any:
    def inner(value: Any, key: Any) -> Any:
        return _written(value, f"{where}[{key!r}]", [*path, str(key)], arrays)

    def whole(value: Any) -> Any:
        return _written(value, where, path, arrays)

    if x is None or isinstance(x, bool | np.generic | int | float | complex | str | bytes):
        return _written_scalar(x, where)
    if is_array(x):
        return _stored(x, where, path, arrays)
    if (kind := _kind_of_random(x)) is not None:
        return {"random": [kind, whole(_random_state(x))]}
    if _has_state(x):
        return {"state": whole(x.state_dict())}
    if isinstance(x, dict):
        if all(type(key) is str for key in x):
            return {"dict": {key: inner(value, key) for key, value in x.items()}}
        return {"items": [[inner(key, key), inner(value, key)] for key, value in x.items()]}
    if isinstance(x, list | tuple):
        if type(x) is list and len(x) >= _MANY and (column := _column(x)) is not None:
            return {"numbers": _stored(column, where, path, arrays)["array"]}
        items = [inner(value, i) for i, value in enumerate(x)]
        return {"tuple": items} if isinstance(x, tuple) else items
    raise TypeError(
        f"{where}: expected an object with state_dict() and load_state_dict(), a NumPy random generator, an array, a "
        f"number, a text, None, or a dict or list of these, got {type(x).__module__}.{type(x).__qualname__}"
    )


def _written_scalar(x: Any, where: str) -> Any:
    if x is None or isinstance(x, bool):
        return x
    if isinstance(x, np.generic) and not isinstance(x, str | bytes):
        return {"number": [_checked_dtype(x, where), np.asarray(x).tobytes().hex()]}
    if isinstance(x, str):
        return str(x)
    if isinstance(x, bytes):
        return {"bytes": x.hex()}
    if isinstance(x, int):
        return int(x) if -(2**63) < x < 2**63 else {"int": hex(x)}
    if isinstance(x, float):
        return {"float": float(x).hex()}
    return {"complex": [x.real.hex(), x.imag.hex()]}


def _column(x: list[Any]) -> Any:
    """Make an array of numbers that are all floats, or all whole."""
    if all(type(value) is float for value in x):
        return np.array(x, np.float64)
    if all(type(value) is int and -(2**63) <= value < 2**63 for value in x):
        return np.array(x, np.int64)
    return None


def _checked_dtype(x: Any, where: str) -> str:
    name = str(x.dtype.name)
    if name not in EXTRA_CODES and name not in ("complex64", "complex128"):
        raise TypeError(f"{where}: expected a dtype of {[*EXTRA_CODES, 'complex64', 'complex128']}, got {x.dtype}")
    return name


def _stored(x: Any, where: str, path: list[str], arrays: dict[str, Any]) -> dict[str, str]:
    _checked_dtype(x, where)
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{where}: a masked array; save its data and its mask")
    if not x.dtype.isnative:
        x = x.astype(x.dtype.newbyteorder("="))
    tensor = EXTRA + "/".join(path)
    while tensor in arrays:
        tensor += "~"
    if x.dtype.kind == "c":
        arrays[tensor] = x.ravel().view(x.real.dtype).reshape((*x.shape, 2))
        return {"complex": tensor}
    arrays[tensor] = x
    return {"array": tensor}


# Reading


def parsed(header: Header) -> dict[str, Any]:
    """Read the nesting of a header: values as they were, and what stands for arrays, states and generators.

    Raises:
        DamagedError: what no save writes.
    """
    known = {name for name in header.tensors if name.startswith(EXTRA)}
    try:
        found = {name: _parsed(node, header, known) for name, node in header.extra.items()}
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
        raise DamagedError(f"its extra: {type(error).__name__}: {in_short(str(error))}") from error
    if known:
        raise DamagedError(f"its extra: arrays that nothing tells of: {in_short(sorted(known))}")
    return found


def _parsed(node: Any, header: Header, known: set[str]) -> Any:
    def inner(value: Any) -> Any:
        return _parsed(value, header, known)

    if node is None or type(node) in (bool, str, int):
        return node
    if type(node) is list:
        return [inner(value) for value in node]
    if type(node) is not dict or len(node) != 1:
        raise ValueError(f"expected one of the kinds of `ravine.checkpoint.extras`, got {in_short(node)}")
    ((kind, value),) = node.items()
    if kind == "dict":
        return {key: inner(item) for key, item in value.items()}
    if kind == "items":
        made = {inner(key): inner(item) for key, item in value}
        if len(made) < len(value):
            raise ValueError("a key twice")
        return made
    if kind == "tuple" and type(value) is list:
        return tuple(map(inner, value))
    if kind == "state":
        return State(inner(value))
    if kind == "random":
        name, state = value
        return Random(name, inner(state))
    if kind in ("array", "complex", "numbers") and type(value) is str:
        return _stored_at(kind, value, header, known)
    return _scalar(kind, value)


def _stored_at(kind: str, tensor: str, header: Header, known: set[str]) -> Stored:
    known.remove(tensor)  # told of once, or unknown
    code, shape, *_ = header.tensors[tensor]
    dtype = dtype_of(code)
    if dtype not in EXTRA_CODES:
        raise ValueError(f"{in_short(tensor)} of dtype {in_short(code)}")
    if kind == "complex":
        if shape[-1:] != (2,) or dtype not in ("float32", "float64"):
            raise ValueError(f"{in_short(tensor)}: expected pairs of real numbers, got {shape} {dtype}")
        return Stored(tensor, {"float32": "complex64", "float64": "complex128"}[dtype], shape[:-1], is_complex=True)
    if kind == "numbers" and (len(shape) != 1 or dtype not in ("float64", "int64")):
        raise ValueError(f"{in_short(tensor)}: expected a list of numbers, got {shape} {dtype}")
    return Stored(tensor, dtype, shape, is_list=kind == "numbers")


def _scalar(kind: str, value: Any) -> Any:
    if kind == "float" and type(value) is str:
        return float.fromhex(value)
    if kind == "int" and type(value) is str:
        return int(value, 16)
    if kind == "complex":
        real, imaginary = map(float.fromhex, value)
        return complex(real, imaginary)
    if kind == "bytes" and type(value) is str:
        return bytes.fromhex(value)
    if kind == "number":
        name, data = value
        if name not in EXTRA_CODES and name not in ("complex64", "complex128"):
            raise ValueError(f"a number of dtype {in_short(name)}")
        (number,) = np.frombuffer(bytes.fromhex(data), _dtype(name))
        return number
    raise ValueError(f"unknown kind {in_short(kind)}")


# Loading


class Plan:
    """What of a file's extras goes where, compared before anything changes.

    Args:
        found: what `parsed` returned.
        given: what to load into, by name.
        strict: whether all that is given must be found and fit.

    Attributes:
        wrong: what does not fit, in words.
        left_out, kept: with ``strict=False``, what of the file was left out, and what stays as it was.
        unasked: objects and generators in the file that nobody asked for.
        dtypes: those of the arrays in the file that are needed, by their names there.
    """

    def __init__(self, found: dict[str, Any], given: Mapping[str, Any] | None, strict: bool) -> None:
        _check_names(given)
        self.wrong: list[str] = []
        self.left_out: list[str] = []
        self.kept: list[str] = []
        self.unasked: list[str] = []
        #: Path, target, what is loaded into it, and what an object's state was.
        self._targets: list[tuple[str, Any, Any, Any]] = []
        self._values: dict[str, Any] = {}
        given = given or {}
        for name in given.keys() - found.keys():
            self.wrong.append(f"extra[{name!r}]: nothing in the file, which has {in_short(sorted(found))}")
            self.kept.append(f"extra[{name!r}]")
        for name, node in found.items():
            where = f"extra[{name!r}]"
            if name not in given and _is_plain(node):
                self._values[name] = node
            elif name not in given:
                self.unasked.append(where)
            else:
                self._match(name, where, given[name], node, strict)
        wanted = [*(stored for _, _, node, _ in self._targets for stored in _arrays_of(node))]
        self.dtypes = {stored.tensor: _numpy_dtype(stored) for stored in (*wanted, *_arrays_of(self._values))}

    def _match(self, name: str, where: str, given: Any, node: Any, strict: bool) -> None:
        targets, wrong = _targets(where, given, node)
        self.wrong += wrong
        if wrong and not strict:
            self.left_out.append(where)
            self.kept.append(where)
        elif not wrong:
            self._targets += targets
            if _asks_for_values(given):
                self._values[name] = _filled(given, node)

    def prepare(self, values: Mapping[str, Any]) -> None:
        """Take the arrays that were read, and try what can be tried.

        Raises:
            ValueError: a generator that does not take its state.
        """
        prepared = []
        for where, x, node, before in self._targets:
            made = _made(node.tree if isinstance(node, State | Random) else node, values, before)
            if isinstance(node, Random):
                try:
                    _set_random(copy.deepcopy(x), made)
                except Exception as error:
                    raise DamagedError(f"{where}: no state of {in_short(node.kind)}: {in_short(str(error))}") from error
            prepared.append((where, x, made, before))
        self._targets = prepared
        self._values = {name: _made(node, values, None) for name, node in self._values.items()}

    @property
    def values(self) -> dict[str, Any]:
        """The file's values that are not loaded in place."""
        return self._values

    def objects(self) -> Iterator[tuple[str, Any, Any, Any]]:
        """Give path, object, its new and its old state of all that load by themselves, which may raise."""
        return ((where, x, new, old) for where, x, new, old in self._targets if _has_state(x))

    def assign(self) -> None:
        """Load arrays and generators, which cannot fail any more."""
        for _, x, new, _ in self._targets:
            if is_array(x):
                backend_of(x).assign(x, new)
            elif not _has_state(x):
                _set_random(x, new)


def _is_target(x: Any) -> bool:
    return _has_state(x) or is_array(x) or _kind_of_random(x) is not None


def _is_taken_in_place(x: Any) -> bool:
    """Whether loading changes x, or something in it; else x only says what kind of value is expected."""
    items = x.values() if isinstance(x, dict) else x if isinstance(x, list | tuple) else None
    return _is_target(x) if items is None else any(map(_is_taken_in_place, items))


def _asks_for_values(x: Any) -> bool:
    """Whether there is something in x that is not loaded in place."""
    items = x.values() if isinstance(x, dict) else x if isinstance(x, list | tuple) else None
    return not _is_target(x) if not items else any(map(_asks_for_values, items))


def _filled(given: Any, node: Any) -> Any:
    """Put values in the place of those that were given; what is loaded in place stays."""
    if not _is_taken_in_place(given):
        return node
    if isinstance(given, dict):
        return {key: _filled(x, node[key]) for key, x in given.items()}
    if isinstance(given, list | tuple):
        return [_filled(x, of) for x, of in zip(given, node, strict=True)]
    return given


def _targets(where: str, given: Any, node: Any) -> tuple[list[tuple[str, Any, Any, Any]], list[str]]:
    """Return what is loaded into what, and what does not fit."""
    if _has_state(given):
        if not isinstance(node, State):
            return [], [f"{where}: expected the state of a {type(given).__name__}, got {_named(node)}"]
        before = copy.deepcopy(given.state_dict())
        return [(where, given, node, before)], _unlike(where, before, node.tree)
    if is_array(given):
        wrong = _unlike(where, given, node)
        if isinstance(given, np.ndarray) and not given.flags.writeable:
            wrong.append(f"{where}: expected an array that can be written to, got a read-only one")
        return [(where, given, node, None)], wrong
    if (kind := _kind_of_random(given)) is not None:
        got = node.kind if isinstance(node, Random) else _named(node)
        return [(where, given, node, None)], [] if got == kind else [f"{where}: expected {kind}, got {in_short(got)}"]
    if not _is_taken_in_place(given):
        return [], _unlike(where, given, node, placeholder=True)
    if isinstance(given, list | tuple) and isinstance(node, list | tuple) and len(given) == len(node):
        pairs: Any = [(f"{where}[{i}]", x, of) for i, (x, of) in enumerate(zip(given, node, strict=True))]
    elif isinstance(given, dict) and isinstance(node, dict) and given.keys() == node.keys():
        pairs = [(f"{where}[{key!r}]", x, node[key]) for key, x in given.items()]
    else:
        return [], [f"{where}: expected {_named(given)}, got {_named(node)}"]
    parts = [_targets(*pair) for pair in pairs]
    return [target for targets, _ in parts for target in targets], [text for _, wrong in parts for text in wrong]


def _unlike(where: str, here: Any, there: Any, placeholder: bool = False) -> list[str]:
    """Compare a state as it is with that of the file.

    What is None or empty here was not set yet. Lists of numbers and texts may grow; arrays, dicts and other lists do
    not. Of a ``placeholder`` only the kind counts.
    """
    if here is None or there is None:
        return []
    if _kind(here) != _kind(there):
        return [f"{where}: expected {_named(here)}, got {_named(there)}"]
    if placeholder or (isinstance(here, dict | list | tuple) and not here):
        return []
    if _kind(here) == "array":
        return [] if _named(here) == _named(there) else [f"{where}: expected {_named(here)}, got {_named(there)}"]
    if isinstance(here, dict):
        missing, unknown = sorted(map(repr, here.keys() - there.keys())), sorted(map(repr, there.keys() - here.keys()))
        wrong = [f"{where}: missing {in_short(missing)}"] if missing else []
        wrong += [f"{where}: unknown {in_short(unknown)}"] if unknown else []
        common = [(f"{where}[{key!r}]", here[key], there[key]) for key in here if key in there]
        return wrong + [text for triple in common for text in _unlike(*triple)]
    if isinstance(here, list | tuple):
        if all(_kind(x) in ("a number", "a text") for x in here) and _is_flat(there):
            return []
        if isinstance(there, Stored) or len(here) != len(there):
            return [f"{where}: expected {_named(here)}, got {_named(there)}"]
        triples = [(f"{where}[{i}]", *pair) for i, pair in enumerate(zip(here, there, strict=True))]
        return [text for triple in triples for text in _unlike(*triple)]
    return []


def _is_flat(x: Any) -> bool:
    return isinstance(x, Stored) or all(_kind(item) in ("a number", "a text") for item in x)


def _kind(x: Any) -> str:
    """Name what must agree."""
    if isinstance(x, Stored):
        return "a list" if x.is_list else "array"
    if isinstance(x, State | Random) or _kind_of_random(x) is not None:
        return _named(x)
    if _has_state(x):
        return "the state of an object"
    if is_array(x):
        return "array"
    if isinstance(x, str | bytes):
        return "bytes" if isinstance(x, bytes) else "a text"
    if isinstance(x, bool | int | float | complex | np.generic):
        return "a number"
    if isinstance(x, dict):
        return "a dict"
    return "a list" if isinstance(x, list | tuple) else type(x).__name__


def _named(x: Any) -> str:
    """Say what x is, for an error."""
    if isinstance(x, Stored) and not x.is_list:
        return f"{x.shape} {x.dtype}"
    if isinstance(x, State):
        return "the state of an object"
    if isinstance(x, Random):
        return in_short(x.kind)
    if (kind := _kind_of_random(x)) is not None:
        return repr(kind)
    if is_array(x):
        return f"{x.shape} {x.dtype.name}"
    if isinstance(x, dict):
        return f"a dict of {in_short(list(x))}"
    if isinstance(x, list | tuple | Stored):
        return f"a list of {x.shape[0] if isinstance(x, Stored) else len(x)}"
    return in_short(x)


def _is_plain(node: Any) -> bool:
    """Whether there is nothing in it that is loaded in place only."""
    if isinstance(node, dict):
        return all(map(_is_plain, node.values()))
    return all(map(_is_plain, node)) if isinstance(node, list | tuple) else not isinstance(node, State | Random)


def _arrays_of(node: Any) -> Iterator[Stored]:
    if isinstance(node, Stored):
        yield node
    elif isinstance(node, State | Random):
        yield from _arrays_of(node.tree)
    elif isinstance(node, dict):
        for item in node.values():
            yield from _arrays_of(item)
    elif isinstance(node, list | tuple):
        for item in node:
            yield from _arrays_of(item)


def _numpy_dtype(stored: Stored) -> Any:
    """Give the dtype of the numbers in the file."""
    return _dtype({"complex64": "float32", "complex128": "float64"}.get(stored.dtype, stored.dtype))


def _dtype(name: str) -> Any:
    if name != "bfloat16":
        return np.dtype(name)
    from ml_dtypes import bfloat16

    return np.dtype(bfloat16)


def has_buffers(found: dict[str, Any]) -> bool:
    """Whether there is the state of an object with arrays."""

    def states(node: Any) -> Iterator[State]:
        if isinstance(node, State):
            yield node
        elif isinstance(node, dict):
            for item in node.values():
                yield from states(item)
        elif isinstance(node, list | tuple):
            for item in node:
                yield from states(item)

    return any(next(_arrays_of(state), None) is not None for state in states(found))


def _made(node: Any, values: Mapping[str, Any], before: Any) -> Any:
    """Make the value, with its arrays where those of before are."""
    if isinstance(node, Stored):
        array = values[node.tensor]
        if node.is_list:
            return array.tolist()
        if node.is_complex:
            array = array.view(node.dtype).reshape(node.shape)
        return backend_of(before).put(array) if is_array(before) else array
    if isinstance(node, State):
        return _made(node.tree, values, None)
    if isinstance(node, Random):
        try:
            return _new_random(node.kind, _made(node.tree, values, None))
        except Exception as error:
            raise DamagedError(f"extra: no state of {in_short(node.kind)}: {in_short(str(error))}") from error
    if isinstance(node, dict):
        of = before if isinstance(before, dict) else {}
        return {key: _made(item, values, of.get(key)) for key, item in node.items()}
    if isinstance(node, list | tuple):
        items = before if isinstance(before, list | tuple) and len(before) == len(node) else [None] * len(node)
        made = [_made(item, values, of) for item, of in zip(node, items, strict=True)]
        return tuple(made) if isinstance(node, tuple) else made
    return node
