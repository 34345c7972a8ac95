"""What of a run stands in its checkpoint; what is compared before any of it is loaded."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ravine import _core, trees
from ravine.averages import LATER
from ravine.backends import is_array
from ravine.checkpoint import durable, extras, layout
from ravine.checkpoint.layout import DamagedError, Header, in_short
from ravine.groups import Past
from ravine.schedules import Schedule

if TYPE_CHECKING:
    from ravine.optimizers import Optimizer

__all__ = ["Loaded", "load", "save"]

#: Of the options that every rule has.
_SWITCHES = ("maximize", "decay_after", "decay_implicit", "decay_unscaled")


@dataclass(frozen=True)
class Loaded:
    """What ``opt.load`` did.

    Attributes:
        path: the file.
        step: completed steps, from where it goes on.
        restored: hyperparameters that were others here: ``"lr: 0.01, was 0.1"``.
        left_out: with ``strict=False``, parameters in the file that were not loaded, and extras: ``"extra['net']"``.
        kept: with ``strict=False``, parameters of the optimizer that stayed as they were, with states and counts; and
            extras.
        extra: values of the file by their names in ``extra=``: numbers, texts, and all that was not loaded in place.
        unasked: objects and generators in the file that ``extra=`` did not ask for.
        without_buffers: parameters of layers with buffers, such as running statistics, where the file has none.
        message: the same in words.
    """

    path: str
    step: int
    restored: tuple[str, ...]
    left_out: tuple[str, ...]
    kept: tuple[str, ...]
    extra: dict[str, Any] = field(default_factory=dict, compare=False)
    unasked: tuple[str, ...] = ()
    without_buffers: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        """What was loaded, in words."""
        parts = [f"{self.path}: goes on after step {self.step}"]
        parts += [f"restored {', '.join(self.restored)}"] if self.restored else []
        parts += [f"left out {', '.join(self.left_out)}"] if self.left_out else []
        parts += [f"kept {', '.join(self.kept)} as they were"] if self.kept else []
        parts += [f"not asked for {', '.join(self.unasked)}; pass them in extra="] if self.unasked else []
        if self.without_buffers:
            parts.append(
                f"not in the file: the buffers, such as running statistics, of the layers of "
                f"{', '.join(self.without_buffers)}; save and load with extra={{'net': net}}"
            )
        return "; ".join(parts)


# Saving


def save(
    opt: Optimizer, path: str | os.PathLike[str], keep: int, params: bool, extra: Mapping[str, Any] | None = None
) -> None:
    """Do what ``Optimizer.save`` says."""
    safetensors = _library("save")
    keep = operator.index(keep)
    if keep < 1:
        raise ValueError(f"keep: expected how many files to keep, at least 1, got {keep}")
    # Renaming over a link would replace the link, not what it leads to.
    target = os.path.realpath(path)
    durable.check_target(target)
    _check_bonds(opt)
    tree, arrays = extras.described(extra)
    arrays |= {name: array for tensors in _tensors(opt, params).values() for name, array in tensors.items()}
    entries, size = layout.layout(arrays)
    step, updates = opt.steps, opt._engine.updates
    meta = {
        "format": layout.FORMAT,
        "version": _core.__version__,
        "rule": opt._rule,
        "optimizer": type(opt).__name__,
        "step": step,
        "updates": dict(zip(opt._engine.names, updates, strict=True)),
        "options": layout.exact(_options(opt)),
        "groups": _groups(opt),
    } | ({"extra": tree} if tree else {})
    if pairs := list(opt._engine.complex_names):
        meta["complex"] = pairs
    if changed := _changed_products(opt):
        meta["products"] = {
            name: {key: [base.hex(), constant, rest.hex()] for key, (base, constant, rest) in pasts.items()}
            for name, pasts in changed.items()
        }
    room = layout.room_for(entries, meta)
    refused = f"{room + size} bytes were to be written; what was saved before is still there"
    with durable.temporary(target) as (file, temporary), durable.told(target, refused):
        checksums = {name: durable.write(file, arrays[name], room + entries[name][0]) for name in entries}
        durable.write(file, np.frombuffer(layout.head(entries, meta, checksums), np.uint8), 0)
        if opt.steps != step or opt._engine.updates != updates:
            raise RuntimeError("save: another thread stepped meanwhile; save between steps")
        # The layout is ours, since the library would take two copies of all arrays to make it, and end the process
        # where there is no memory for them. It has the last word on whether others can read it.
        safetensors.safe_open(temporary, "numpy", backend="pread")
        os.fsync(file)
        durable.rotate(target, keep)
        os.replace(temporary, target)
    with durable.told(target, "it is saved, but may not survive a loss of power"):
        durable.sync_folder(target)


def _library(doing: str) -> Any:
    try:
        import safetensors
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{doing} needs safetensors: pip install 'ravine[io]'") from error
    return safetensors


def _check_bonds(opt: Optimizer) -> None:
    """Refuse arrays that are no longer what the container holds: nobody would miss those that it holds now."""
    opt._check_torch_groups()
    now = dict(_core.flatten(opt._params))
    for name, array in zip(opt._engine.names, opt._engine.arrays, strict=True):
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
    values = [_group_values(opt, group) for group in range(len(members))]
    for each in values:
        if each["lr_scale"] == 1:  # as in files of before there was one
            del each["lr_scale"]
    return [{"names": names, **layout.exact(each)} for names, each in zip(members, values, strict=True)]


def _group_values(opt: Optimizer, group: int) -> dict[str, Any]:
    """Give a group's values: numbers as they are now, schedules by what they are."""
    rates = {name: opt.groups[group][name] for name in ("lr", "lr_scale")}
    numbers = {
        name: _spelled(value) or rates.get(name, opt._engine.hyper(group, name))
        for name, value in opt._flat_values(group).items()
    }
    return {**numbers, "lr_scale": rates["lr_scale"]}


def _changed_products(opt: Optimizer) -> dict[str, dict[str, Past]]:
    """Give the products that are no powers of a number of the group, of parameters that have any."""
    values = [_group_values(opt, group) for group in range(len(opt._values))]
    products: dict[str, dict[str, Past]] = {}
    bound = zip(opt._products().items(), opt._group_of, opt._engine.updates, strict=True)
    for (name, pasts), group, t in bound:
        changed = {key: past for key, past in pasts.items() if past != (values[group][key], t, 1.0)}
        products |= {name: changed} if changed else {}
    return products


def _products(header: Header, keys: Collection[str]) -> dict[str, dict[str, Past]]:
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


def _spelled(value: Any) -> dict[str, str] | None:
    """Name a schedule; of a function that is not ours, no more than that it is one can be known."""
    if isinstance(value, Schedule):
        return {"schedule": repr(value)}
    return {"function": getattr(value, "__qualname__", type(value).__qualname__)} if callable(value) else None


# Loading


def load(
    opt: Optimizer,
    path: str | os.PathLike[str],
    params: bool,
    hyper: bool,
    strict: bool,
    extra: Mapping[str, Any] | None = None,
) -> Loaded:
    """Do what ``Optimizer.load`` says."""
    safetensors = _library("load")
    name = os.path.abspath(path)
    _check_bonds(opt)
    with durable.reading(name) as file:
        try:
            header = layout.read_header(file)
            # Holes, overlaps, shapes that do not fit their bytes: the format is the library's to check.
            safetensors.safe_open(name, "numpy", backend="pread")
            found = extras.parsed(header)
            rounded = params and _has_masters_alone(opt, header)
            fits, left_out, wrong = _differences(opt, header, params and not rounded, strict)
            numbers, unlike = _numbers(opt, header, fits) if hyper and header.rule == opt._rule else ({}, [])
            plan = extras.Plan(found, extra, strict)
            wrong += [*unlike, *(plan.wrong if strict else ())]
            if wrong:
                cures = _cures(opt, header, params and not rounded, hyper, strict, bool(plan.wrong))
                raise ValueError(layout.listed([*wrong, *cures]))
            opt._schedule_values(header.step)
            tensors = _tensors(opt, params and not rounded)
            own = {tensor: array for of in fits for tensor, array in tensors[of].items()}
            dtypes = {tensor: array.dtype for tensor, array in own.items()} | plan.dtypes
            values = _read(file, header, dtypes)
            plan.prepare(values)
            values |= {name: np.zeros(array.shape, array.dtype) for name, array in own.items() if name not in values}
        except (DamagedError, safetensors.SafetensorError) as error:
            said = str(error) if len(str(error)) < 1000 else f"{str(error)[:1000]}…"
            raise ValueError(f"{name}: damaged: {said}. Nothing was loaded{durable.older(name)}") from error
        except ValueError as error:
            raise ValueError(f"{name}: {error}. Nothing was loaded") from error
    restored = []
    present = [_group_values(opt, group) for group in range(len(opt._values))]
    for (group, key), number in numbers.items():
        before = present[group][key]
        if number != before:
            where = f" of {opt._engine.names[opt._group_of.index(group)]!r}" if len(opt._values) > 1 else ""
            restored.append(f"{key}{where}: {number!r}, was {before!r}")
    own_updates = zip(opt._engine.names, opt._engine.updates, strict=True)
    counts = {n: header.updates[n] if n in fits else count for n, count in own_updates}
    saved = _products(header, opt._about.get("products", {}))
    products = {n: saved[n] if n in fits else past for n, past in opt._products().items()}
    assign: list[Callable[[], Any]] = [plan.assign]
    assign += [partial(opt._backend.assign, array, values[tensor]) for tensor, array in own.items()]
    assign += [partial(opt._round_masters, fits)] if rounded else []
    assign += [partial(opt._set_counters, header.step, counts, products)]
    assign += [partial(opt._set_numbers, numbers)]

    # Objects of the user's first: they alone may fail.
    objects: list[Callable[[], Any]] = [partial(_load_object, where, x, new) for where, x, new, _ in plan.objects()]
    left = [*objects, *assign, opt._start][::-1]

    def take() -> None:
        try:
            while left:  # what was done is not done again
                left[-1]()
                left.pop()
        except Exception as error:
            for where, x, _, old in plan.objects():
                _put_back(error, where, x, old)
            raise ValueError(f"{name}: {error}. Nothing was loaded") from error

    _core.uninterrupted(take, again=True)
    kept = (*(n for n in opt._engine.names if n not in fits), *plan.kept)
    return Loaded(
        name,
        header.step,
        tuple(restored),
        (*left_out, *plan.left_out),
        kept,
        plan.values,
        tuple(plan.unasked),
        () if extras.has_buffers(found) else tuple(trees.buffered(opt.params)),
    )


def _load_object(where: str, x: Any, state: Any) -> None:
    try:
        x.load_state_dict(state)
    except Exception as error:
        raise ValueError(f"{where}: load_state_dict raised {type(error).__name__}: {error}") from error


def _put_back(cause: Exception, where: str, x: Any, state: Any) -> None:
    try:
        x.load_state_dict(state)
    except Exception as error:
        cause.add_note(f"{where} could not be put back: {type(error).__name__}: {error}")


def _cures(opt: Optimizer, header: Header, params: bool, hyper: bool, strict: bool, extra: bool) -> list[str]:
    """Say what would load the file: only what was found to."""
    masters = {options.get("master") for options in (_options(opt), header.options)}
    if header.rule != opt._rule:
        made = f", {header.optimizer[:50]}" if header.optimizer else ""
        alone = "; its parameters alone are in safetensors.numpy.load_file(path), as 'params/<name>'"
        has_params = any(name.startswith("params/") for name in header.tensors)
        return [f"load it into the optimizer that it is of{made}{alone if has_params else ''}"]
    if masters == {"float32", "split"}:
        return [f"load it with master={header.options['master']!r}, and pass the state_dict() of that on"]
    for way in (
        {"strict": strict, "hyper": False},
        {"strict": False, "hyper": hyper},
        {"strict": False, "hyper": False},
    ):
        fits, _, wrong = _differences(opt, header, params, way["strict"])
        unlike = _numbers(opt, header, fits)[1] if way["hyper"] else []
        if not (wrong or unlike or (extra and way["strict"])):
            made, fitting = "make the optimizer as it was, or pass", "strict=False loads what fits"
            if way["strict"] == strict:
                return [f"{made} hyper=False to go on with its own numbers"]
            return [fitting if way["hyper"] == hyper else f"{made} hyper=False, too: {fitting}"]
    return ["make the optimizer as it was" + "; no parameter would fit with strict=False" * strict]


def _has_masters_alone(opt: Optimizer, header: Header) -> bool:
    """Whether the file has no parameters, but the exact copies of all that this optimizer has."""
    names = zip(opt._engine.names, opt._engine.kept, strict=True)
    alone = all("master" in kept and f"master/{name}" in header.tensors for name, kept in names)
    return alone and not any(name.startswith("params/") for name in header.tensors)


def _differences(opt: Optimizer, header: Header, params: bool, strict: bool) -> tuple[list[str], list[str], list[str]]:
    """Return which parameters can be loaded, which of the file's cannot, and what is wrong, if anything is."""
    own, saved = _tensors(opt, params), header.updates.keys()
    fatal = [f"rule: expected {opt._rule!r}, got {in_short(header.rule)}"] if header.rule != opt._rule else []
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
    pairs = opt._engine.complex_names
    for name in (name for name in own if name in saved):
        unlike = [_difference(tensor, array, header) for tensor, array in own[name].items()]
        if (name in pairs) != (name in header.pairs):
            expected, got = ("complex", "real") if name in pairs else ("real", "complex")
            unlike.append(f"{name!r}: expected {expected} numbers, got {got} ones")
        wrong += filter(None, unlike)
        fits += [] if any(unlike) else [name]
    if strict and wrong:
        return [], [], [*fatal, *wrong]
    if own and not fits:
        fatal += [*wrong, "nothing fits"]
    return fits, [name for name in saved if name not in fits], fatal


def _difference(tensor: str, array: Any, header: Header) -> str | None:
    dtype, shape, *_ = header.tensors.get(tensor, ("nothing", ()))
    if tensor not in header.tensors and tensor.partition("/")[0] in LATER:
        return None
    if (dtype, shape) == (layout.code_of(tensor, array), array.shape):
        return None
    got = "nothing" if tensor not in header.tensors else f"{in_short(shape)} {layout.dtype_of(dtype)}"
    return f"{tensor}: expected {array.shape} {array.dtype}, got {got}"


def _numbers(opt: Optimizer, header: Header, fits: list[str]) -> tuple[dict[tuple[int, str], float], list[str]]:
    """Return the hyperparameters to set, by group and name, and those that cannot be set."""
    options, saved_options = _options(opt), dict(header.options)
    changed = [
        past for name, pasts in header.products.items() for past in pasts.values() if past[1] != header.updates[name]
    ]
    if not changed:  # both forms are the same while no β changes, and older files do not know of it
        saved_options["correction"] = options.get("correction")
    unlike = {
        name: f"{in_short(name)[1:-1]}: expected {options.get(name)!r}, got {in_short(saved_options.get(name))}"
        for name in sorted(options.keys() | saved_options.keys())
        if options.get(name) != saved_options.get(name)
    }
    numbers: dict[tuple[int, str], float] = {}
    own = [_group_values(opt, group) for group in range(len(opt._values))]
    kinds = opt._about["hyperparameters"]
    for name, group in zip(opt._engine.names, opt._group_of, strict=True):
        saved = {"lr_scale": 1.0, **header.values[name]} if name in fits else {}
        for key in sorted(own[group].keys() | saved.keys()) if saved else ():
            here: Any = own[group].get(key)
            there: Any = saved.get(key)
            switch = kinds.get(key) == "switch" or key in _SWITCHES
            changeable = _is_number(here) and _is_number(there) and not switch
            what = f"{in_short(key)[1:-1]} of {name!r}"
            if changeable and numbers.setdefault((group, key), there) == there:
                try:
                    if key == "lr_scale":  # of a rate in its range, which stands before it
                        rate = numbers.get((group, "lr"), 1.0)
                        opt._engine.check_hyper("lr", there)
                        opt._engine.check_hyper("lr", rate * there)
                    else:
                        opt._engine.check_hyper(key, there)
                except ValueError as error:
                    unlike[f"{group} {key}"] = f"{what}: {error}"
            elif changeable:
                unlike[what] = f"{what}: expected {numbers[group, key]!r} as in the rest of its group, got {there!r}"
            elif here != there and not _both_functions(here, there):
                unlike[f"{group} {key}"] = f"{what}: expected {_shown(here)}, got {_shown(there)}"
    return numbers, list(unlike.values())


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _both_functions(here: Any, there: Any) -> bool:
    """Whether both are functions of the user's: what they compute cannot be compared."""
    return all(isinstance(value, dict) and "function" in value for value in (here, there))


def _shown(value: Any) -> str:
    if not isinstance(value, dict):
        return in_short(value)
    return " ".join(f"the {in_short(kind)[1:-1]} {in_short(text)[1:-1]}" for kind, text in value.items())


def _read(file: BinaryIO, header: Header, dtypes: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Read and check all tensors; return those that are asked for, in these dtypes."""
    values = {}
    for name, (_, shape, begin, end) in header.tensors.items():
        raw = np.empty(end - begin, np.uint8)
        file.seek(begin)
        if file.readinto(raw) != raw.size:  # type: ignore[attr-defined]
            raise DamagedError(f"{in_short(name)} ends before its {raw.size} bytes")
        if (found := layout.checksum(raw)) != header.checksums[name]:
            expected = in_short(header.checksums[name])[1:-1]
            raise DamagedError(f"the checksum of {in_short(name)}: expected {expected}, got {found}")
        if name in dtypes:
            values[name] = raw.view(dtypes[name]).reshape(shape)
    return values
