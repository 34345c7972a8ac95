r"""Checkpoints: what ``opt.save`` writes and ``opt.load`` reads, one file in the safetensors format.

Any reader of that format finds the arrays: ``<rule>/<state>/<parameter>``, such as ``adam/m/hidden.w``, and
``params/<parameter>``; where they are kept, ``master/<parameter>`` or ``remainder/<parameter>``,
``average/<parameter>`` and Lookahead's ``slow/<parameter>``. The metadata have one entry, ``ravine``, in JSON:

==============  =================================================================================================
``checksum``    CRC-32 of the length and the header, its own eight digits read as 0
``format``      1
``version``     of ravine, when it was written
``rule``        its name in the core
``step``        completed steps
``updates``     t of each parameter
``products``    of parameters where a β has changed: what it was in the first updates, how many, the product since
``options``     ``values`` of ``clip_value``, ``clip_norm``, ``nonfinite``, ``clip_eps``, and of ``lookahead``,
                ``average``, ``master``, ``states``, ``rounding`` and ``correction`` if they are on; ``exact``: its
                numbers, in hexadecimal
``groups``      ``names`` of the parameters, ``values``: numbers, and of schedules the expression; ``exact``
``checksums``   CRC-32 of each tensor's bytes
==============  =================================================================================================

CRC-32 finds any one flipped bit and any damage within 32 bits for sure, other damage but for 1 in 4 billion. It is in
Python, and runs at several times a disk's speed. It guards against accidents, not against forgery. Each byte of a file
is under one of the checksums.
"""

from __future__ import annotations

import errno
import json
import operator
import os
import stat
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ravine import _core
from ravine.backends import cpu, is_array
from ravine.groups import Past, checked_past
from ravine.schedules import Schedule

if TYPE_CHECKING:
    from ravine.optimizers import Optimizer

__all__ = ["Loaded"]

FORMAT = 1
#: The format's own limit: readers refuse a longer header.
_LONGEST_HEADER = 100_000_000
#: What stands before the header's checksum. No other place can hold it: within a string, quotes are escaped.
_MARK = b'"ravine":"{\\"checksum\\":\\"'
_UNKNOWN = "0" * 8
_PIECE = 1 << 20
#: Of the options that every rule has.
_SWITCHES = ("maximize", "decay_after", "decay_implicit", "decay_unscaled")
_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "uint16": "BF16",  # the bits of a state's numbers: NumPy has no bfloat16
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
}
#: What a file system says that has no hard links.
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}


@dataclass(frozen=True)
class Loaded:
    """What ``opt.load`` did.

    Attributes:
        path: the file.
        step: completed steps, from where it goes on.
        restored: hyperparameters that were others here: ``"lr: 0.01, was 0.1"``.
        left_out: with ``strict=False``, parameters in the file that were not loaded.
        kept: with ``strict=False``, parameters of the optimizer that stayed as they were, with states and counts.
        message: the same in words.
    """

    path: str
    step: int
    restored: tuple[str, ...]
    left_out: tuple[str, ...]
    kept: tuple[str, ...]

    @property
    def message(self) -> str:
        """What was loaded, in words."""
        parts = [f"{self.path}: goes on after step {self.step}"]
        parts += [f"restored {', '.join(self.restored)}"] if self.restored else []
        parts += [f"left out {', '.join(self.left_out)}"] if self.left_out else []
        parts += [f"kept {', '.join(self.kept)} as they were"] if self.kept else []
        return "; ".join(parts)


@dataclass(frozen=True)
class _Header:
    """A file's header, checked as far as that goes without an optimizer."""

    rule: str
    step: int
    updates: dict[str, int]
    options: dict[str, Any]
    #: Of each parameter, as its group has them.
    values: dict[str, dict[str, Any]]
    checksums: dict[str, str]
    #: Of each parameter, those that are not constants in ``values``.
    products: dict[str, dict[str, Past]]
    #: dtype, shape, first byte and the byte after the last, counted from the file's beginning.
    tensors: dict[str, tuple[str, tuple[int, ...], int, int]]


# Saving


def save(opt: Optimizer, path: str | os.PathLike[str], keep: int, params: bool) -> None:
    """Do what ``Optimizer.save`` says."""
    safetensors = _library("save")
    keep = operator.index(keep)
    if keep < 1:
        raise ValueError(f"keep: expected how many files to keep, at least 1, got {keep}")
    # Renaming over a link would replace the link, not what it leads to.
    target = os.path.realpath(path)
    _check_target(target)
    _check_bonds(opt)
    arrays = {name: array for tensors in _tensors(opt, params).values() for name, array in tensors.items()}
    entries, size = _layout(arrays)
    step, updates = opt.steps, opt._engine.updates
    meta = {
        "format": FORMAT,
        "version": _core.__version__,
        "rule": opt._rule,
        "step": step,
        "updates": dict(zip(opt._engine.names, updates, strict=True)),
        "options": _exact(_options(opt)),
        "groups": _groups(opt),
    }
    if changed := _changed_products(opt):
        meta["products"] = {
            name: {key: [base.hex(), constant, rest.hex()] for key, (base, constant, rest) in pasts.items()}
            for name, pasts in changed.items()
        }
    room = _head(entries, meta, dict.fromkeys(entries, _UNKNOWN))
    if len(room) - 8 > _LONGEST_HEADER:
        raise ValueError(
            f"save: the names and checksums take {len(room) - 8} bytes, the format allows {_LONGEST_HEADER}; "
            "use fewer arrays, or shorter names"
        )
    refused = f"{len(room) + size} bytes were to be written; what was saved before is still there"
    with _temporary(target) as (file, temporary), _told(target, refused):
        checksums = {name: _write(file, arrays[name], len(room) + entries[name][0]) for name in entries}
        _write(file, np.frombuffer(_head(entries, meta, checksums), np.uint8), 0)
        if opt.steps != step or opt._engine.updates != updates:
            raise RuntimeError("save: another thread stepped meanwhile; save between steps")
        # The layout is ours, since the library would take two copies of all arrays to make it, and end the process
        # where there is no memory for them. It has the last word on whether others can read it.
        safetensors.safe_open(temporary, "numpy", backend="pread")
        os.fsync(file)
        _rotate(target, keep)
        os.replace(temporary, target)
    with _told(target, "it is saved, but may not survive a loss of power"):
        _sync_folder(target)


def _library(doing: str) -> Any:
    try:
        import safetensors
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{doing} needs safetensors: pip install 'ravine[io]'") from error
    return safetensors


def _check_kind(path: str) -> None:
    """Refuse what exists and is no file: a folder, or a pipe, on which one would wait."""
    if os.path.exists(path) and not os.path.isfile(path):
        kind = IsADirectoryError if os.path.isdir(path) else OSError
        raise kind(f"path: expected a file, got {path!r}, which is none; give another name")


def _check_target(target: str) -> None:
    """Find before any work what the file system would only say in its end, and less clearly."""
    _check_kind(target)
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"path: no folder {folder!r}; make it with os.makedirs, or give another path")


def _check_bonds(opt: Optimizer) -> None:
    """Refuse arrays that are no longer what the container holds: nobody would miss those that it holds now."""
    opt._check_torch_groups()
    now = dict(_core.flatten(opt._params))
    for name, array in zip(opt._engine.names, opt._engine.parameters, strict=True):
        leaf = now.get(name)
        # Another library's array is not ours to compare; the next step does.
        if name not in now or (is_array(leaf) and leaf is not array):
            raise ValueError(
                f"params[{name!r}] is another array than the one given to the optimizer, or gone; "
                "assign into the array (w[...] = new), or make a new optimizer"
            )


def _tensors(opt: Optimizer, params: bool) -> dict[str, dict[str, Any]]:
    """Give, of each parameter, the bound arrays by their names in the file."""
    states = opt._states()
    return {
        name: {f"{opt._rule}/{kind}/{name}": state for kind, state in states[name].items()}
        | {f"{kind}/{name}": array for kind, array in kept.items()}
        | ({f"params/{name}": parameter} if params else {})
        for name, kept, parameter in zip(opt._engine.names, opt._engine.kept, opt._engine.parameters, strict=True)
    }


def _groups(opt: Optimizer) -> list[dict[str, Any]]:
    members: list[list[str]] = [[] for _ in opt._values]
    for name, group in zip(opt._engine.names, opt._group_of, strict=True):
        members[group].append(name)
    return [{"names": names, **_exact(_group_values(opt, group))} for group, names in enumerate(members)]


def _group_values(opt: Optimizer, group: int) -> dict[str, Any]:
    """Give a group's values: numbers as they are now, schedules by what they are."""
    return {name: _spelled(value) or opt._engine.hyper(group, name) for name, value in opt._flat_values(group).items()}


def _changed_products(opt: Optimizer) -> dict[str, dict[str, Past]]:
    """Give the products that are no powers of a number of the group, of parameters that have any."""
    values = [_group_values(opt, group) for group in range(len(opt._values))]
    products: dict[str, dict[str, Past]] = {}
    bound = zip(opt._products().items(), opt._group_of, opt._engine.updates, strict=True)
    for (name, pasts), group, t in bound:
        changed = {key: past for key, past in pasts.items() if past != (values[group][key], t, 1.0)}
        products |= {name: changed} if changed else {}
    return products


def _products(header: _Header, keys: Collection[str]) -> dict[str, dict[str, Past]]:
    """Give the products of all parameters of a file, as far as it knows them."""
    products: dict[str, dict[str, Past]] = {}
    for name, t in header.updates.items():
        numbers = {key: header.values[name].get(key) for key in keys}
        constant = {key: (number, t, 1.0) for key, number in numbers.items() if t and isinstance(number, float)}
        products[name] = {**constant, **header.products.get(name, {})}
    return products


def _options(opt: Optimizer) -> dict[str, Any]:
    return {
        name: value if value is None or isinstance(value, str) else float(value) for name, value in opt._options.items()
    }


def _exact(values: dict[str, Any]) -> dict[str, Any]:
    """Write numbers twice: decimal ones depend on the rounding mode, which another library may have changed."""
    return {"values": values, "exact": {name: value.hex() for name, value in values.items() if type(value) is float}}


def _exactly(entry: dict[str, Any]) -> dict[str, Any]:
    """Read what `_exact` wrote."""
    values, exact = dict(entry["values"]), dict(entry["exact"])
    if {name for name, value in values.items() if type(value) in (int, float)} != exact.keys():
        raise ValueError(f"expected exact numbers for those among {list(values)}, got {list(exact)}")
    return values | {name: float.fromhex(value) for name, value in exact.items()}


def _spelled(value: Any) -> dict[str, str] | None:
    """Name a schedule; of a function that is not ours, no more than that it is one can be known."""
    if isinstance(value, Schedule):
        return {"schedule": repr(value)}
    return {"function": getattr(value, "__qualname__", type(value).__qualname__)} if callable(value) else None


def _checksum(data: Any, before: int = 0) -> str:
    return f"{zlib.crc32(data, before):08x}"


def _header_checksum(head: bytes, place: int) -> str:
    """The checksum of length and header, with 0 in the place of its own digits."""
    return _checksum(head[place + 8 :], zlib.crc32(_UNKNOWN.encode(), zlib.crc32(head[:place])))


def _layout(arrays: dict[str, Any]) -> tuple[dict[str, tuple[int, dict[str, Any]]], int]:
    """Give each array its place behind the header, with its entry there, and the bytes of all.

    Wide elements come first, as the library has it: readers that map the file find them aligned.
    """
    entries, offset = {}, 0
    for name, array in sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        about = {
            "dtype": _DTYPES[array.dtype.name],
            "shape": array.shape,
            "data_offsets": [offset, offset + array.nbytes],
        }
        entries[name] = offset, about
        offset += array.nbytes
    return entries, offset


def _head(entries: dict[str, tuple[int, dict[str, Any]]], meta: dict[str, Any], checksums: dict[str, str]) -> bytes:
    """Make length and header, of a length that does not depend on the checksums."""
    metadata = {"ravine": _json({"checksum": _UNKNOWN, **meta, "checksums": checksums})}
    text = _json({"__metadata__": metadata, **{name: about for name, (_, about) in entries.items()}}).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    place = head.index(_MARK) + len(_MARK)
    return head[:place] + _header_checksum(head, place).encode() + head[place + 8 :]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


@contextmanager
def _told(target: str, then: str) -> Iterator[None]:
    """Say of an error of the file system what it means for the checkpoint."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"save: {error.strerror}; {then}", target) from error


@contextmanager
def _temporary(target: str) -> Iterator[tuple[int, str]]:
    """Give an empty file beside the target, which nobody else writes; remove it unless it was renamed.

    Its name is always the same: what a killed process has left is used again. The lock ends with the process, so it
    tells such a file from one that is being written.
    """
    import fcntl

    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f".{name}.saving")
    with _told(target, "nothing was written"):
        while True:
            # Not truncated yet: it may be another's, and by now even be the checkpoint.
            file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                raise RuntimeError(f"save: someone else is saving to {target!r} now; give each its own file") from None
            except OSError:
                pass  # a file system without locks: nothing tells, and two who save there at once are on their own
            if _is(file, temporary):
                break
            os.close(file)  # the one who held the lock has renamed or removed it meanwhile
    try:
        with _told(target, "nothing was written"):
            os.ftruncate(file, 0)
            if os.path.exists(target):
                os.fchmod(file, stat.S_IMODE(os.stat(target).st_mode))
        yield file, temporary
    finally:
        # Before the lock goes. After the renaming there is none; if this fails, the next save uses the file.
        with suppress(OSError):
            if _is(file, temporary):
                os.unlink(temporary)
        os.close(file)


def _is(file: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _write(file: int, array: Any, place: int) -> str:
    """Write an array's elements in C order, from a place in the file on; return the checksum of what was written."""
    # One array at a time, so that those of a device need no second room here.
    host: np.ndarray[Any, Any] = np.asarray(cpu.put(array), order="C")
    data = memoryview(host.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
    os.lseek(file, place, os.SEEK_SET)
    checksum = 0
    for begin in range(0, len(data), _PIECE):
        # A copy: whoever else may write to the array, checksum and file agree.
        piece = memoryview(bytes(data[begin : begin + _PIECE]))
        checksum = zlib.crc32(piece, checksum)
        while piece:
            piece = piece[os.write(file, piece) :]  # it may write less than all
    return f"{checksum:08x}"


def _rotate(target: str, keep: int) -> None:
    """Give the present file the name .1, that one .2, …; at each moment the target's name has a whole file."""
    names = [target, *(f"{target}.{i}" for i in range(1, keep))]
    if keep == 1 or not os.path.exists(target):
        return
    if os.path.exists(names[1]) and os.path.samefile(target, names[1]):
        return  # done already, by a save that was killed before it could rename
    for older, newer in reversed(list(zip(names[2:], names[1:-1], strict=True))):
        if os.path.exists(newer):
            os.replace(newer, older)
    with suppress(FileNotFoundError):
        os.unlink(names[1])  # with keep=2 the oldest; else a link that leads nowhere
    try:
        os.link(target, names[1])
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.replace(target, names[1])  # for a moment no file has the name; `load` then says which has


def _sync_folder(target: str) -> None:
    """Make the renaming last."""
    folder = os.open(os.path.dirname(target), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot
            raise
    finally:
        os.close(folder)


# Loading


class _DamagedError(ValueError):
    """A file that is not what was written."""


def load(opt: Optimizer, path: str | os.PathLike[str], params: bool, hyper: bool, strict: bool) -> Loaded:
    """Do what ``Optimizer.load`` says."""
    safetensors = _library("load")
    name = os.path.abspath(path)
    _check_bonds(opt)
    with _open(name) as file:
        try:
            header = _read_header(file)
            # Holes, overlaps, shapes that do not fit their bytes: the format is the library's to check.
            safetensors.safe_open(name, "numpy", backend="pread")
            rounded = params and _has_masters_alone(opt, header)
            fits, left_out, wrong = _differences(opt, header, params and not rounded, strict)
            numbers, unlike = _numbers(opt, header, fits) if hyper else ({}, [])
            if wrong or unlike:
                raise ValueError("; ".join([*wrong, *unlike]))
            opt._schedule_values(header.step)
            tensors = _tensors(opt, params and not rounded)
            own = {tensor: array for of in fits for tensor, array in tensors[of].items()}
            values = _read(file, header, own)
        except (_DamagedError, safetensors.SafetensorError) as error:
            raise ValueError(f"{name}: damaged: {error}. Nothing was loaded{_older(name)}") from error
        except ValueError as error:
            raise ValueError(f"{name}: {error}. Nothing was loaded") from error
    restored = []
    for (group, key), number in numbers.items():
        before = opt._engine.hyper(group, key)
        if number != before:
            where = f" of {opt._engine.names[opt._group_of.index(group)]!r}" if len(opt._values) > 1 else ""
            restored.append(f"{key}{where}: {number!r}, was {before!r}")
    own_updates = zip(opt._engine.names, opt._engine.updates, strict=True)
    counts = {n: header.updates[n] if n in fits else count for n, count in own_updates}
    saved = _products(header, opt._about.get("products", {}))
    products = {n: saved[n] if n in fits else past for n, past in opt._products().items()}

    def assign() -> None:
        for tensor, array in own.items():
            opt._backend.assign(array, values[tensor])
        if rounded:
            opt._round_masters(fits)
        opt._set_counters(header.step, counts, products)
        for (group, key), number in numbers.items():
            opt._set_number(group, key, number)
        opt._start()

    try:
        assign()
    except KeyboardInterrupt:  # all or nothing: it was not nothing
        assign()
        raise
    kept = tuple(n for n in opt._engine.names if n not in fits)
    return Loaded(name, header.step, tuple(restored), tuple(left_out), kept)


def _open(name: str) -> BinaryIO:
    _check_kind(name)
    try:
        return open(name, "rb")
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, f"no such checkpoint{_older(name)}", name) from error


def _older(name: str) -> str:
    """Name the file that ``keep`` has kept, if there is one."""
    target = os.path.realpath(name)
    found = next(filter(os.path.exists, (f"{target}.{i}" for i in range(1, 100))), None)
    return f"; the one saved before it is {found!r}: load that, if you want to" if found else ""


def _read_header(file: BinaryIO) -> _Header:
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= min(size - 8, _LONGEST_HEADER):
        raise _DamagedError(f"a header of {length} bytes, in a file of {size}")
    file.seek(0)
    return _parse(file.read(8 + length), size)


def _parse(head: bytes, size: int) -> _Header:
    """Read a header, in a file of that size."""
    place = head.find(_MARK) + len(_MARK)
    if place < len(_MARK):
        raise _DamagedError("no header of ravine's; what other programs wrote, safetensors.numpy.load_file reads")
    found, expected = head[place : place + 8].decode("latin-1"), _header_checksum(head, place)
    if found != expected:
        raise _DamagedError(f"the header's checksum: expected {found}, got {expected}")
    try:
        entries = json.loads(head[8:], object_pairs_hook=_once)
        meta = json.loads(entries.pop("__metadata__")["ravine"], object_pairs_hook=_once)
        version, number = meta["version"], meta["format"]
        header = _header(entries, meta, len(head)) if number == FORMAT else None
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise _DamagedError(f"its header: {error!r}") from error
    if header is None:
        raise ValueError(f"format: expected {FORMAT}, got {number!r}, of ravine {version}; load it with that version")
    expected_size = max((end for *_, end in header.tensors.values()), default=len(head))
    if size != expected_size:
        raise _DamagedError(f"{size} bytes long, expected {expected_size}")
    return header


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict; JSON allows a key twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"twice {next(key for key in keys if keys.count(key) > 1)!r}")
    return found


def _header(entries: dict[str, Any], meta: dict[str, Any], offset: int) -> _Header:
    tensors = {}
    for name, entry in entries.items():
        begin, end = entry["data_offsets"]
        tensors[name] = str(entry["dtype"]), tuple(entry["shape"]), offset + int(begin), offset + int(end)
    values = {name: own for group in meta["groups"] for own in [_exactly(group)] for name in group["names"]}
    updates, checksums = dict(meta["updates"]), dict(meta["checksums"])
    if values.keys() != updates.keys() or checksums.keys() != tensors.keys():
        raise ValueError("groups, updates, checksums and arrays are not of the same names")
    for count in (meta["step"], *updates.values()):
        if type(count) is not int or not 0 <= count < 2**63:
            raise ValueError(f"expected a count >= 0, got {count!r}")
    keys = _core.rules().get(meta["rule"], {}).get("products", {})
    products = {
        name: {key: _read_past(past, updates[name]) for key, past in pasts.items()}
        for name, pasts in meta.get("products", {}).items()
    }
    if any(past.keys() - keys for past in products.values()):
        raise ValueError(f"expected products of {list(keys)}, got {products}")
    options = _exactly(meta["options"])
    return _Header(meta["rule"], meta["step"], updates, options, values, checksums, products, tensors)


def _read_past(past: list[Any], t: int) -> Past:
    base, constant, rest = past
    return checked_past({"base": float.fromhex(base), "constant": constant, "rest": float.fromhex(rest)}, t)


def _has_masters_alone(opt: Optimizer, header: _Header) -> bool:
    """Whether the file has no parameters, but the exact copies of all that this optimizer has."""
    names = zip(opt._engine.names, opt._engine.kept, strict=True)
    alone = all("master" in kept and f"master/{name}" in header.tensors for name, kept in names)
    return alone and not any(name.startswith("params/") for name in header.tensors)


def _differences(opt: Optimizer, header: _Header, params: bool, strict: bool) -> tuple[list[str], list[str], list[str]]:
    """Return which parameters can be loaded, which of the file's cannot, and what is wrong, if anything is."""
    own, saved = _tensors(opt, params), header.updates.keys()
    fatal = [f"rule: expected {opt._rule!r}, got {header.rule!r}"] if header.rule != opt._rule else []
    if params and saved and not any(name.startswith("params/") for name in header.tensors):
        fatal.append("parameters: none in the file, which was saved with params=False; pass it here, too")
    if fatal:
        own = {name: {} for name in own}
    wrong = [f"parameters: missing {missing}"] if (missing := sorted(own.keys() - saved)) else []
    wrong += [f"parameters: unknown {unknown}"] if (unknown := sorted(saved - own.keys())) else []
    for name in own if not fatal else ():
        kept = {f"{kind}/{name}" for kind in _core.KEPT} & header.tensors.keys()
        wrong += [f"{tensor}: expected nothing, got an array" for tensor in sorted(kept - own[name].keys())]
    fits = []
    for name in (name for name in own if name in saved):
        unlike = [_difference(tensor, array, header) for tensor, array in own[name].items()]
        wrong += filter(None, unlike)
        fits += [] if any(unlike) else [name]
    if strict and wrong:
        return [], [], [*fatal, *wrong, "strict=False loads what fits"]
    if own and not fits:
        fatal += [*wrong, "nothing fits"]
    return fits, [name for name in saved if name not in fits], fatal


def _difference(tensor: str, array: Any, header: _Header) -> str | None:
    dtype, shape, *_ = header.tensors.get(tensor, ("nothing", ()))
    if (dtype, shape) == (_DTYPES[array.dtype.name], array.shape):
        return None
    names = {code: name for name, code in reversed(_DTYPES.items())}
    got = "nothing" if tensor not in header.tensors else f"{shape} {names.get(dtype, dtype)}"
    return f"{tensor}: expected {array.shape} {array.dtype}, got {got}"


def _numbers(opt: Optimizer, header: _Header, fits: list[str]) -> tuple[dict[tuple[int, str], float], list[str]]:
    """Return the hyperparameters to set, by group and name, and those that cannot be set."""
    options, saved_options = _options(opt), dict(header.options)
    changed = [
        past for name, pasts in header.products.items() for past in pasts.values() if past[1] != header.updates[name]
    ]
    if not changed:  # both forms are the same while no β changes, and older files do not know of it
        saved_options["correction"] = options.get("correction")
    unlike = {
        name: f"{name}: expected {options.get(name)!r}, got {saved_options.get(name)!r}"
        for name in sorted(options.keys() | saved_options.keys())
        if options.get(name) != saved_options.get(name)
    }
    numbers: dict[tuple[int, str], float] = {}
    own = [_group_values(opt, group) for group in range(len(opt._values))]
    kinds = opt._about["hyperparameters"]
    for name, group in zip(opt._engine.names, opt._group_of, strict=True):
        saved = header.values[name] if name in fits else {}
        for key in sorted(own[group].keys() | saved.keys()) if saved else ():
            here: Any = own[group].get(key)
            there: Any = saved.get(key)
            switch = kinds.get(key) == "switch" or key in _SWITCHES
            changeable = _is_number(here) and _is_number(there) and not switch
            what = f"{key} of {name!r}"
            if changeable and numbers.setdefault((group, key), there) == there:
                try:
                    opt._engine.check_hyper(key, there)
                except ValueError as error:
                    unlike[f"{group} {key}"] = f"{what}: {error}"
            elif changeable:
                unlike[what] = f"{what}: expected {numbers[group, key]!r} as in the rest of its group, got {there!r}"
            elif here != there and not _both_functions(here, there):
                unlike[f"{group} {key}"] = f"{what}: expected {_shown(here)}, got {_shown(there)}"
    cure = ["make the optimizer as it was, or pass hyper=False to go on with its own numbers"]
    if {options.get("master"), header.options.get("master")} == {"float32", "split"}:
        cure = [f"load it with master={header.options['master']!r}, and pass the state_dict() of that on"]
    return numbers, [*unlike.values(), *cure] if unlike else []


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _both_functions(here: Any, there: Any) -> bool:
    """Whether both are functions of the user's: what they compute cannot be compared."""
    return all(isinstance(value, dict) and "function" in value for value in (here, there))


def _shown(value: Any) -> str:
    return " ".join(f"the {kind} {text}" for kind, text in value.items()) if isinstance(value, dict) else repr(value)


def _read(file: BinaryIO, header: _Header, own: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Read and check all tensors; return those that have an array here."""
    values = {}
    for name, (_, shape, begin, end) in header.tensors.items():
        raw = np.empty(end - begin, np.uint8)
        file.seek(begin)
        if file.readinto(raw) != raw.size:  # type: ignore[attr-defined]
            raise _DamagedError(f"{name!r} ends before its {raw.size} bytes")
        if (found := _checksum(raw)) != header.checksums[name]:
            raise _DamagedError(f"the checksum of {name!r}: expected {header.checksums[name]}, got {found}")
        if name in own:
            values[name] = raw.view(own[name].dtype).reshape(shape)
    return values
