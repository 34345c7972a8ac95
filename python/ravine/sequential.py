"""Layers one after the other, whatever they are, and however often each is used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakValueDictionary

from ravine import _core
from ravine.backends import array_module, is_array
from ravine.layers import Kept, Stateful, arrays_of, load_arrays

__all__ = ["Sequential"]

Array: TypeAlias = Any

_PROTOCOL = ("forward", "backward", "params", "grads")


class Sequential(Stateful):
    """Apply layers one after the other; ``params`` and ``grads`` are lists with one entry per layer.

    A parameter's dotted name is its layer's place and its own name: ``"0.weight"``. Any object with ``forward``,
    ``backward``, ``params`` and ``grads`` is a layer, another Sequential too. One layer may stand in several places, in
    this net or in another: its gradients add up, and its parameters are listed at the first place, as ``{}`` at the
    others.

    Raises:
        TypeError: something that is no layer, named by its place.

    >>> net = rv.nn.Sequential(rv.nn.Linear(4, 2, np.random.default_rng(0)), rv.nn.Tanh())
    >>> net
    Sequential(Linear(weight=(4, 2), bias=(2,)), Tanh())
    >>> [sorted(p) for p in net.params]
    [['bias', 'weight'], []]
    """

    def __init__(self, *layers: Any) -> None:
        for i, layer in enumerate(layers):
            if isinstance(layer, type) or not _is_layer(layer):
                what = f"the class {layer.__name__}; call it" if isinstance(layer, type) else f"{layer!r}"
                raise TypeError(f"layers[{i}]: expected a layer with forward, backward, params and grads, got {what}")
        self.layers = layers

    @property
    def params(self) -> list[Any]:
        """The layers' params, in order."""
        return _listed(self, "params", set())

    @property
    def grads(self) -> list[Any]:
        """The layers' grads, in order: None before the first backward."""
        return _listed(self, "grads", set())

    def forward(self, x: Array, training: bool = True) -> Array:
        """Give the last layer's output; ``training`` is handed to every layer.

        Raises:
            TypeError: a layer that stands in several places, and whose attributes cannot be put aside.
        """
        keeping = training or self._kept is None or not self._kept.waiting
        if keeping:
            self._release()
        shared = _shared(self.layers)
        tape = []
        for i, layer in enumerate(self.layers):
            if id(layer) in shared and not hasattr(layer, "__dict__"):
                raise TypeError(
                    f"layers[{i}]: {type(layer).__name__} stands in several places, and has no attributes that could "
                    "be put aside for each; make a layer for each place"
                )
            if (last := _last.get(id(layer))) is not None and last.layer is layer:
                last.copy()
            before = layer.kept if isinstance(layer, Stateful) else None
            if before is not None and keeping and not training:
                layer.kept = None  # this evaluation counts here, even if a training forward waits elsewhere
            x = layer.forward(x, training=training)
            if keeping:
                tape.append(_put_aside(layer))
            if before is not None and before.waiting and not training:
                layer.kept = before
        if keeping:
            self._kept = Kept(tape, training)
        return x

    def backward(self, dy: Array) -> Array:
        """Go back through all layers, filling their grads, and give ∂L/∂x.

        They go back through the last forward of this net; an evaluation is none while one in training waits for its
        backward. The gradients of a layer that stands in several places are added.

        Raises:
            RuntimeError: before any forward.
        """
        if self._kept is None and any(part.kept is None for part in _parts(self) if _is_ours(part)):
            raise RuntimeError(f"{type(self).__name__}.backward: nothing to go back through; call forward first")
        tape = [None] * len(self.layers) if self._kept is None or self._by_hand() else self._kept.value
        shared, done = _shared(self.layers), set[int]()
        for layer, kept in zip(reversed(self.layers), reversed(tape), strict=True):
            parts = {id(part): part for part in _parts(layer) if id(part) in shared} if shared else {}
            before = [_Sum.of(part) for key, part in parts.items() if key in done]
            g, dy = dy, _backward(layer, kept, dy)
            for summed in before:
                summed.add((g, dy))
            done.update(parts)
        if self._kept is not None:
            self._kept.waiting = False
        return dy

    def state_dict(self) -> dict[str, Any]:
        """Return copies of all layers' parameters and buffers by dotted name; of layers of your own, what theirs gives.

        >>> net = rv.nn.Sequential(rv.nn.ReLU(), rv.BatchNorm(3))
        >>> list(net.state_dict())
        ['1.weight', '1.bias', '1.running_mean', '1.running_var']
        """
        state: dict[str, Any] = {}
        for path, layer in _named(self, "", set()):
            own = layer.state_dict() if hasattr(layer, "state_dict") else _copies(arrays_of(layer))
            state |= {path + name: value for name, value in own.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Overwrite all layers' parameters and buffers, in place; layers of your own load theirs themselves.

        Args:
            state: what ``state_dict`` returned.

        Raises:
            ValueError: other names, shapes or dtypes, all of them listed. Nothing was loaded.
        """
        arrays: dict[str, Array] = {}
        others, left = [], dict(state)
        for path, layer in _named(self, "", set()):
            if isinstance(layer, Stateful) or not hasattr(layer, "load_state_dict"):
                arrays |= {path + name: array for name, array in arrays_of(layer).items()}
            else:
                own = {name: left.pop(name) for name in list(left) if name.startswith(path)}
                others.append((layer, {name.removeprefix(path): value for name, value in own.items()}))
        kept = _copies(arrays)
        load_arrays(arrays, left)
        undo = [(layer, layer.state_dict()) for layer, _ in others]
        try:
            for layer, own in others:
                layer.load_state_dict(own)
        except BaseException:
            load_arrays(arrays, kept)
            for layer, own in undo:
                layer.load_state_dict(own)
            raise

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.layers))})"

    def _release(self) -> None:
        """Drop what the last forward kept: arrays that only it holds are then used again."""
        if self._kept is None:
            return
        for layer, kept in zip(self.layers, self._kept.value, strict=False):
            if isinstance(layer, Stateful) and layer.kept is kept and kept is not None:
                if isinstance(layer, Sequential):
                    layer._release()
                layer.kept = None
        self._kept = None

    def _by_hand(self) -> bool:
        """Whether the caller has sent something through every single layer since."""
        kept = [part.kept for part in _parts(self) if _is_ours(part)]
        return bool(kept) and all(one is not None and one.waiting and not one.taped for one in kept)


def _is_layer(x: Any) -> bool:
    return not isinstance(x, type) and all(hasattr(x, name) for name in _PROTOCOL)


def _is_ours(layer: Any) -> bool:
    """Whether all that a layer keeps is its ``kept``: of classes of the user's, that may be in any attribute."""
    return isinstance(layer, Stateful) and type(layer).__module__.partition(".")[0] == "ravine"


def _parts(layer: Any) -> Iterator[Any]:
    """The layers that a layer consists of: itself, or those of a `Sequential`."""
    if isinstance(layer, Sequential):
        for part in layer.layers:
            yield from _parts(part)
    else:
        yield layer


def _shared(layers: tuple[Any, ...]) -> set[int]:
    """The ids of the layers that are, or are part of, more than one of these."""
    if len({id(layer) for layer in layers}) == len(layers) and not any(isinstance(x, Sequential) for x in layers):
        return set()
    counts = Counter(key for layer in layers for key in {id(part) for part in _parts(layer)})
    return {key for key, count in counts.items() if count > 1}


def _listed(net: Sequential, what: str, seen: set[int]) -> list[Any]:
    found = []
    for layer in net.layers:
        if isinstance(layer, Sequential):
            found.append(_listed(layer, what, seen))
        else:
            found.append({} if id(layer) in seen else getattr(layer, what))
            seen.add(id(layer))
    return found


def _named(net: Sequential, path: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Each part once, after its dotted path."""
    for i, layer in enumerate(net.layers):
        if isinstance(layer, Sequential):
            yield from _named(layer, f"{path}{i}.", seen)
        elif id(layer) not in seen:
            seen.add(id(layer))
            yield f"{path}{i}.", layer


def _copies(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: array.copy() for name, array in arrays.items()}


class _Sum(NamedTuple):
    """A layer's gradients before the next backward overwrites them."""

    layer: Any
    grads: list[Any]
    copies: list[Any]

    @classmethod
    def of(cls, layer: Any) -> _Sum:
        grads = [g for _, _, g in _slots(layer.grads)]
        return cls(layer, grads, [None if g is None else g.copy() for g in grads])

    def add(self, passed: tuple[Array, Array]) -> None:
        """Add them to those of that backward, to which these arrays were passed, or by which they were returned."""
        for (container, key, g), array, copy in zip(_slots(self.layer.grads), self.grads, self.copies, strict=True):
            xp = array_module(g)
            if g is array and not any(isinstance(x, xp.ndarray) and xp.may_share_memory(g, x) for x in passed):
                g += copy
            elif copy is not None:
                container[key] = g + copy


def _slots(tree: Any) -> list[tuple[Any, Any, Any]]:
    """Each container, key and leaf of a nesting."""
    found: list[tuple[Any, Any, Any]] = []
    for key, item in tree.items() if isinstance(tree, dict) else enumerate(tree):
        found += _slots(item) if isinstance(item, dict | list | tuple) else [(tree, key, item)]
    return found


class _Attributes:
    """What a layer of the user's keeps, as far as Python shows it; and so of the layers inside it."""

    __slots__ = ("__weakref__", "copied", "inner", "layer", "values")

    def __init__(self, layer: Any, outer: tuple[Any, ...] = ()) -> None:
        self.layer, own, outer = layer, vars(layer), (*outer, layer)
        self.values = {name: value for name, value in own.items() if name not in ("params", "grads", "buffers")}
        parts = [part for value in self.values.values() for part in _inner(value)]
        # A part may know what it is part of.
        self.inner = [(part, _kept_by(part, outer)) for part in parts if not any(part is one for one in outer)]
        self.copied = False

    def copy(self) -> None:
        """Copy what the next forward may overwrite, if that is not yet done."""
        if not self.copied:
            written = _written(self.layer)
            self.values = {name: _copy(value, written) for name, value in self.values.items()}
            self.copied = True
        for _, kept in self.inner:
            if isinstance(kept, _Attributes):
                kept.copy()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the layer be as it was meanwhile."""
        own = vars(self.layer)
        later = {name: own[name] for name, value in self.values.items() if name in own and own[name] is not value}
        with ExitStack() as stack:
            for part, kept in self.inner:
                if kept is not None:
                    stack.enter_context(_in_place(part, kept))
            own.update(self.values)
            yield
            for name, value in later.items():
                if own.get(name) is self.values[name]:
                    own[name] = value


#: By the id of a layer of the user's, what it kept last, as long as a net will go back through that.
_last: WeakValueDictionary[int, _Attributes] = WeakValueDictionary()


@contextmanager
def _in_place(layer: Any, kept: Kept | _Attributes) -> Iterator[None]:
    if isinstance(kept, _Attributes):
        with kept.in_place():
            yield
        return
    now, layer.kept = layer.kept, kept
    yield
    if now is not None and now.waiting:
        layer.kept = now


def _written(layer: Any) -> set[int]:
    """The ids of the arrays that a layer changes for good: no copies of them are put in their places."""
    trees = (getattr(layer, name, None) for name in ("params", "grads", "buffers"))
    return {id(leaf) for tree in trees if tree for _, leaf in _core.flatten(tree)}


def _copy(value: Any, written: set[int]) -> Any:
    """Copy the arrays in a nesting."""
    if is_array(value):
        return value if id(value) in written else value.copy()
    if isinstance(value, dict):
        return {key: _copy(item, written) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_copy(item, written) for item in value)
    return value


def _inner(value: Any) -> Iterator[Any]:
    """The layers in an attribute."""
    if _is_layer(value):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            if not (_is_layer(item) or isinstance(item, dict | list | tuple)):
                return  # numbers, maybe a million
            yield from _inner(item)


def _kept_by(layer: Any, outer: tuple[Any, ...] = ()) -> Kept | _Attributes | None:
    """What a layer has kept in its last forward."""
    if _is_ours(layer):
        kept: Kept | None = layer.kept
        return kept
    return _Attributes(layer, outer) if hasattr(layer, "__dict__") else None


def _put_aside(layer: Any) -> Kept | _Attributes | None:
    """Take what a layer has just kept for a backward to come."""
    kept = _kept_by(layer)
    if isinstance(kept, Kept):
        kept.taped = True
    elif kept is not None:
        _last[id(layer)] = kept
    return kept


def _backward(layer: Any, kept: Kept | _Attributes | None, dy: Array) -> Array:
    """Go back through a layer as it was after its forward; what waits for another backward goes on waiting."""
    if kept is None:
        return layer.backward(dy)
    with _in_place(layer, kept):
        return layer.backward(dy)
