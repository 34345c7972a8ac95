"""The bytes of a checkpoint: where each array stands, the header, the checksums, and what no save writes."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO

from ravine import _core
from ravine.groups import Past, checked_past

__all__ = [
    "EXTRA",
    "EXTRA_CODES",
    "FORMAT",
    "UNKNOWN",
    "DamagedError",
    "Header",
    "checksum",
    "code_of",
    "dtype_of",
    "exact",
    "head",
    "in_short",
    "layout",
    "listed",
    "read_header",
    "room_for",
]

#: The version of the format that is written here, and read.
FORMAT = 1
#: The format's own limit: readers refuse a longer header.
_LONGEST_HEADER = 100_000_000
#: What stands before the header's checksum. No other place can hold it: within a string, quotes are escaped.
_MARK = b'"ravine":"{\\"checksum\\":\\"'
#: In the place of a checksum that is not known yet.
UNKNOWN = "0" * 8
#: Of parameters and states.
_CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "uint16": "BF16",  # the bits of a state's numbers: NumPy has no bfloat16
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
}
#: What the names of all other arrays begin with.
EXTRA = "extra/"
#: Their codes, by dtype.
EXTRA_CODES = {
    **{name: code for name, code in _CODES.items() if name != "uint16"},
    "uint16": "U16",
    "int32": "I32",
    "uint32": "U32",
    "int64": "I64",
    "uint64": "U64",
    "bool": "BOOL",
}
#: The longest text of one thing that a file says, and the most things, in a message.
_LONGEST, _MOST = 300, 30


class DamagedError(ValueError):
    """A file that is not what was written."""


@dataclass(frozen=True)
class Header:
    """A file's header, checked as far as that goes without an optimizer."""

    rule: str
    #: The class that wrote it; None of files from before it was noted.
    optimizer: str | None
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
    #: What `ravine.checkpoint.extras` wrote.
    extra: Any
    #: The complex parameters, whose arrays are pairs of reals.
    pairs: frozenset[str]


def in_short(value: Any) -> str:
    """Give a repr of limited length: what a file says may be of any."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def listed(items: Iterable[str]) -> str:
    """Join what is wrong, each part and the number of parts limited."""
    parts = [text if len(text) <= 2 * _LONGEST else f"{text[: 2 * _LONGEST - 1]}…" for text in items]
    more = [f"and {len(parts) - _MOST} more"] if len(parts) > _MOST else []
    return "; ".join(parts[:_MOST] + more)


# Writing


def code_of(name: str, array: Any) -> str:
    """Give the format's code of an array's dtype."""
    return (EXTRA_CODES if name.startswith(EXTRA) else _CODES)[array.dtype.name]


def dtype_of(code: str) -> str:
    """Name the dtype of such a code, or the code itself where there is none."""
    return {code: name for name, code in reversed((EXTRA_CODES | {"bfloat16": "BF16"}).items())}.get(code, code)


def exact(values: dict[str, Any]) -> dict[str, Any]:
    """Write numbers twice: decimal ones depend on the rounding mode, which another library may have changed."""
    numbers = {name: value for name, value in values.items() if type(value) is float}
    shown = {name: str(value) for name, value in numbers.items() if not math.isfinite(value)}  # JSON has no infinity
    return {"values": values | shown, "exact": {name: value.hex() for name, value in numbers.items()}}


def checksum(data: Any, before: int = 0) -> str:
    """Return the CRC-32 of bytes, or of those after others."""
    return f"{zlib.crc32(data, before):08x}"


def _header_checksum(head: bytes, place: int) -> str:
    """The checksum of length and header, with 0 in the place of its own digits."""
    return checksum(head[place + 8 :], zlib.crc32(UNKNOWN.encode(), zlib.crc32(head[:place])))


def layout(arrays: dict[str, Any]) -> tuple[dict[str, tuple[int, dict[str, Any]]], int]:
    """Give each array its place behind the header, with its entry there, and the bytes of all.

    Wide elements come first, as the library has it: readers that map the file find them aligned.
    """
    entries, offset = {}, 0
    for name, array in sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        about = {"dtype": code_of(name, array), "shape": array.shape, "data_offsets": [offset, offset + array.nbytes]}
        entries[name] = offset, about
        offset += array.nbytes
    return entries, offset


def head(entries: dict[str, tuple[int, dict[str, Any]]], meta: dict[str, Any], checksums: dict[str, str]) -> bytes:
    """Make length and header, of a length that does not depend on the checksums."""
    metadata = {"ravine": _json({"checksum": UNKNOWN, **meta, "checksums": checksums})}
    text = _json({"__metadata__": metadata, **{name: about for name, (_, about) in entries.items()}}).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    place = head.index(_MARK) + len(_MARK)
    return head[:place] + _header_checksum(head, place).encode() + head[place + 8 :]


def room_for(entries: dict[str, tuple[int, dict[str, Any]]], meta: dict[str, Any]) -> int:
    """Return the bytes of length and header.

    Raises:
        ValueError: more than the format allows.
    """
    room = len(head(entries, meta, dict.fromkeys(entries, UNKNOWN)))
    if room - 8 > _LONGEST_HEADER:
        raise ValueError(
            f"save: the names and checksums take {room - 8} bytes, the format allows {_LONGEST_HEADER}; "
            "use fewer arrays, or shorter names"
        )
    return room


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


# Reading


def read_header(file: BinaryIO) -> Header:
    """Read and check a file's header.

    Raises:
        DamagedError: it is not what was written.
        ValueError: it is of another version of the format.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= min(size - 8, _LONGEST_HEADER):
        raise DamagedError(f"a header of {length} bytes, in a file of {size}")
    file.seek(0)
    return _parse(file.read(8 + length), size)


def _parse(head: bytes, size: int) -> Header:
    """Read a header, in a file of that size."""
    place = head.find(_MARK) + len(_MARK)
    if place < len(_MARK):
        raise DamagedError("no header of ravine's; what other programs wrote, safetensors.numpy.load_file reads")
    found, expected = head[place : place + 8].decode("latin-1"), _header_checksum(head, place)
    if found != expected:
        raise DamagedError(f"the header's checksum: expected {found}, got {expected}")
    try:
        entries = _loaded(head[8:])
        meta = _loaded(entries.pop("__metadata__")["ravine"])
        version, number = _of(str, meta["version"]), meta["format"]
        header = _header(entries, meta, len(head)) if number == FORMAT and type(number) is int else None
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise DamagedError(f"its header: {type(error).__name__}: {in_short(str(error))}") from error
    if header is None:
        got = in_short(number)
        raise ValueError(f"format: expected {FORMAT}, got {got}, of ravine {version[:50]}; load it with that version")
    expected_size = max((end for *_, end in header.tensors.values()), default=len(head))
    if size != expected_size:
        raise DamagedError(f"{size} bytes long, expected {expected_size}")
    return header


def _loaded(text: Any) -> Any:
    return json.loads(text, object_pairs_hook=_once, parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise ValueError(f"expected a finite number, got {constant}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict; JSON allows a key twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"twice {key!r}")
        found[key] = value
    return found


def _of(kind: type, value: Any) -> Any:
    """Give a value of just this type."""
    if type(value) is not kind:
        raise ValueError(f"expected {kind.__name__}, got {in_short(value)}")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"expected a count >= 0, got {in_short(value)}")
    return value


def _header(entries: dict[str, Any], meta: dict[str, Any], offset: int) -> Header:
    tensors = {}
    for name, entry in entries.items():
        begin, end = map(_count, _of(list, entry["data_offsets"]))
        shape = tuple(map(_count, _of(list, entry["shape"])))
        tensors[name] = _of(str, entry["dtype"]), shape, offset + begin, offset + end
    values: dict[str, dict[str, Any]] = {}
    for group in _of(list, meta["groups"]):
        own = _exactly(group)
        for name in _of(list, group["names"]):
            if _of(str, name) in values:
                raise ValueError(f"twice {name!r} in groups")
            values[name] = own
    updates = {name: _count(count) for name, count in _of(dict, meta["updates"]).items()}
    checksums = {name: _of(str, text) for name, text in _of(dict, meta["checksums"]).items()}
    if values.keys() != updates.keys() or checksums.keys() != tensors.keys():
        raise ValueError("groups, updates, checksums and arrays are not of the same names")
    keys = _core.rules().get(_of(str, meta["rule"]), {}).get("products", {})
    products = {
        name: {key: _read_past(past, updates[name]) for key, past in _of(dict, pasts).items()}
        for name, pasts in _of(dict, meta.get("products", {})).items()
    }
    pairs = [_of(str, name) for name in _of(list, meta.get("complex", []))]
    if len(set(pairs)) < len(pairs) or set(pairs) - updates.keys():
        raise ValueError(f"expected complex parameters among {in_short([*updates])}, each once, got {in_short(pairs)}")
    if any(past.keys() - keys for past in products.values()):
        raise ValueError(f"expected products of {list(keys)}, got {in_short(products)}")
    return Header(
        meta["rule"],
        _of(str, meta["optimizer"]) if "optimizer" in meta else None,
        _count(meta["step"]),
        updates,
        _exactly(meta["options"]),
        values,
        checksums,
        products,
        tensors,
        _of(dict, meta.get("extra", {})),
        frozenset(pairs),
    )


def _read_past(past: Any, t: int) -> Past:
    base, constant, rest = _of(list, past)
    numbers = {"base": float.fromhex(_of(str, base)), "rest": float.fromhex(_of(str, rest))}
    return checked_past({**numbers, "constant": _count(constant)}, t)


def _exactly(entry: dict[str, Any]) -> dict[str, Any]:
    """Read what `exact` wrote."""
    values, exact = _of(dict, entry["values"]), _of(dict, entry["exact"])
    for value in values.values():
        known = value is None or type(value) in (int, float, str)
        if not known and [type(text) for text in _of(dict, value).values()] != [str]:
            raise ValueError(f"expected a number, a text or the name of a function, got {in_short(value)}")
    # An infinite number has a text in the other place.
    if not {name for name, value in values.items() if type(value) in (int, float)} <= exact.keys() <= values.keys():
        raise ValueError(f"expected exact numbers for those of {in_short([*values])}, got {in_short([*exact])}")
    numbers = {name: float.fromhex(_of(str, text)) for name, text in exact.items()}
    for name, number in numbers.items():
        if math.isnan(number) or (not math.isfinite(number) and values[name] != str(number)):
            raise ValueError(f"expected a number for {in_short(name)}, got {number}")
        if type(values[name]) not in (int, float) and math.isfinite(number):
            raise ValueError(f"expected {in_short(values[name])} for {in_short(name)}, got {number}")
    found: dict[str, Any] = values | numbers
    return found
