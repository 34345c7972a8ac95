"""Data on its way to the optimizer: minibatches and standardised inputs."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator, Mapping
from typing import Any, Self, SupportsIndex, TypeAlias

import numpy as np

from ravine import _core
from ravine.backends import backend_of, cpu, is_array
from ravine.init import seed_of

__all__ = ["Minibatches", "Standardize", "minibatches"]

Array: TypeAlias = Any
Generator: TypeAlias = Any


def minibatches(
    *arrays: Array, batch_size: int, rng: Generator | int | None = None, drop_last: bool = False, replace: bool = False
) -> Minibatches:
    r"""Go through the samples in batches; each loop over the result is one epoch, with an rng in a new order.

    The mean gradient of a batch of S out of N samples has variance σ²/S·(N − S)/(N − 1) if the samples are shuffled,
    and σ²/S if they are drawn with replacement.

    Args:
        arrays: with one sample per row, all of the same length N: NumPy's, CuPy's, memory maps, sparse matrices of
            SciPy, series and data frames of pandas (whose rows are taken by position, whatever their labels; those of a
            batch are numbered from 0).
        batch_size: samples in a batch, ≥ 1.
        rng: a Generator that shuffles, or a seed; None keeps the order, and the batches are then views.
        drop_last: leave out the last batch if it is short.
        replace: draw N samples independently instead of shuffling.

    Returns:
        `Minibatches`, which gives tuples, one array for each given.

    Raises:
        ValueError: no samples, unequal lengths, a batch size out of range, no full batch under ``drop_last``,
            or ``replace`` without an rng.
        TypeError: no arrays, or an argument that is no array.

    >>> x, y = np.arange(10).reshape(5, 2), np.arange(5)
    >>> for xb, yb in rv.data.minibatches(x, y, batch_size=2):
    ...     print(xb.shape, yb)
    (2, 2) [0 1]
    (2, 2) [2 3]
    (1, 2) [4]
    """
    return Minibatches(arrays, batch_size, rng, drop_last, replace)


class Minibatches:
    """The batches of `minibatches`: each ``iter()`` is one epoch, ``next()`` goes on with it, ``len()`` counts.

    The order of the first epoch is drawn at once, that of another by its ``iter()``. ``state_dict`` and
    ``load_state_dict`` let a killed run go on in the middle of an epoch: the next ``iter()`` then gives the rest of it.

    Args:
        arrays, batch_size, rng, drop_last, replace: as of `minibatches`.

    >>> batches = rv.data.minibatches(np.arange(6), batch_size=2, rng=0)
    >>> len(batches), [sum(len(x) for x, in batches) for epoch in range(2)]
    (3, [6, 6])
    """

    def __init__(
        self, arrays: tuple[Array, ...], batch_size: int, rng: Generator | int | None, drop_last: bool, replace: bool
    ) -> None:
        self._arrays = tuple(_by_position(i, array) for i, array in enumerate(arrays))
        self._n = n = _samples(self._arrays)
        try:
            self._size = size = operator.index(batch_size)
        except TypeError:
            got = f"{batch_size!r} ({type(batch_size).__name__})"
            raise TypeError(f"batch_size: expected an integer >= 1, got {got}") from None
        if size < 1:
            raise ValueError(f"batch_size: expected an integer >= 1, got {size}")
        if drop_last and size > n:
            raise ValueError(f"batch_size: drop_last leaves no batch of {size} out of {n} samples")
        if replace and rng is None:
            raise ValueError("rng: replace=True draws at random and needs one, such as np.random.default_rng(0)")
        self._starts = range(0, n - n % size if drop_last else n, size)
        self._replace, self._seeded = bool(replace), seed_of(rng) is not None
        self._rng = np.random.default_rng(seed_of(rng)) if self._seeded else rng
        if rng is not None and not hasattr(self._rng, "random"):
            raise TypeError(f"rng: expected a Generator, a seed or None, got {type(rng).__name__}")
        self._fresh = False
        self._begin()

    def __iter__(self) -> Iterator[tuple[Array, ...]]:
        if not self._fresh or self._epoch.finished:
            _core.uninterrupted(self._begin)
        self._fresh = False
        return self._epoch

    def __next__(self) -> tuple[Array, ...]:
        # As the epoch itself does: an interrupt between a call of that and the return would lose a batch.
        epoch = self._epoch
        batch = epoch.batch()
        epoch.position += 1
        return batch

    def __len__(self) -> int:
        """How many batches an epoch has."""
        return len(self._starts)

    def __repr__(self) -> str:
        return f"Minibatches({self._n} samples in batches of {self._size}, {self._epoch.position} of {len(self)} given)"

    def state_dict(self) -> dict[str, Any]:
        """Return where it is: the generator's state at the epoch's start, and how many batches were given since.

        A generator without a state that can be read, such as CuPy's, is replaced by the order itself. A generator of
        the caller's own is to be saved, too: later epochs come from it.

        >>> batches = rv.data.minibatches(np.arange(6), batch_size=2, rng=0); _ = next(batches)
        >>> state = batches.state_dict(); state["position"], state["finished"]
        (1, False)
        """
        epoch = self._epoch
        state = {"format": 1, "position": epoch.position, "finished": epoch.finished, **self._settings()}
        if self._start is not None:
            return {**state, "generator": copy.deepcopy(self._start)}
        return state if epoch.order is None else {**state, "order": cpu.put(epoch.order).copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on in the middle of an epoch: the next ``iter()``, or ``next()``, gives the rest.

        The order is made again by a copy of the generator. One that was given stays as it is: load it, too. One that
        was made from a seed goes on from the end of that order.

        Args:
            state: what ``state_dict`` returned for the same samples, batch size and options.

        Raises:
            ValueError: a state of other samples or options, all differences listed, or no state. Nothing was loaded.

        >>> x = np.arange(6); one, other = (rv.data.minibatches(x, batch_size=2, rng=seed) for seed in (0, 1))
        >>> _ = next(one); other.load_state_dict(one.state_dict())
        >>> [a.tolist() for a, in one] == [b.tolist() for b, in other]
        True
        """
        if state.get("format") != 1:
            raise ValueError(f"state: expected what state_dict() returned, format 1, got {state.get('format')!r}")
        wrong = [
            f"{name}: expected {value!r} as here, got {state.get(name)!r}"
            for name, value in self._settings().items()
            if state.get(name) != value
        ]
        position = state.get("position")
        if not isinstance(position, SupportsIndex) or not 0 <= operator.index(position) <= len(self):
            wrong.append(f"position: expected a count up to {len(self)}, got {position!r}")
        if wrong:
            raise ValueError(f"state: {'; '.join(wrong)}. Nothing was loaded.")
        order, start = state.get("order"), state.get("generator")
        generator = None
        if start is not None:
            generator = _generator_at(start)
            order = self._draw(generator)
        elif order is not None:
            order = np.asarray(order)
            if (
                order.shape != (self._n,)
                or order.dtype.kind not in "iu"
                or not 0 <= order.min() <= order.max() < self._n
            ):
                raise ValueError(f"state['order']: expected {self._n} places of samples. Nothing was loaded.")
        if (order is None) != (self._rng is None):
            raise ValueError(
                f"state: expected {'no order' if self._rng is None else 'the order of a generator'}, as rng="
                f"{'None' if self._rng is None else '…'} says here, got another. Nothing was loaded."
            )
        rng = generator if generator is not None and self._seeded else self._rng
        epoch = _Epoch(self._arrays, order, self._starts, self._size, operator.index(state["position"]))
        epoch.finished, start = bool(state.get("finished")), copy.deepcopy(start)
        # Nothing is called here, so no interrupt comes between.
        self._rng, self._start, self._epoch, self._fresh = rng, start, epoch, not epoch.finished

    def _settings(self) -> dict[str, Any]:
        return {"samples": self._n, "batch_size": self._size, "batches": len(self), "replace": self._replace}

    def _begin(self) -> None:
        """Draw the order of an epoch."""
        # With its own: PCG64's state is 128 bits, which are read in microseconds.
        self._start = None if self._rng is None else _state_of(self._rng)
        order = None if self._rng is None else self._draw(self._rng)
        self._epoch = _Epoch(self._arrays, order, self._starts, self._size, 0)
        #: Whether the epoch at hand is that of the next `iter`.
        self._fresh = True

    def _draw(self, rng: Generator) -> Array:
        if self._replace:
            return rng.integers(0, self._n, self._n)
        # CuPy's Generator has not always had permutation.
        return rng.permutation(self._n) if hasattr(rng, "permutation") else rng.random(self._n).argsort()


class _Epoch:
    """The batches of one epoch, from a position on."""

    def __init__(self, arrays: tuple[Array, ...], order: Array | None, starts: range, size: int, position: int) -> None:
        self.arrays, self.order, self.starts, self.size, self.position = arrays, order, starts, size, position
        #: Whether it was asked for more than it has.
        self.finished = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[Array, ...]:
        batch = self.batch()
        self.position += 1
        return batch

    def batch(self) -> tuple[Array, ...]:
        """Give the batch at the position."""
        if self.position >= len(self.starts):
            self.finished = True
            raise StopIteration
        start = self.starts[self.position]
        part = slice(start, start + self.size)
        if self.order is None:
            return tuple(array[part] for array in self.arrays)
        return tuple(array[backend_of(array).put(self.order[part])] for array in self.arrays)


class _Rows:
    """The rows of a series or data frame, by their places."""

    def __init__(self, frame: Any) -> None:
        self.frame, self.shape = frame, frame.shape

    def __getitem__(self, rows: Any) -> Any:
        # Numbered from 0: pandas pairs the numbers of two series by their labels.
        return self.frame.iloc[rows].reset_index(drop=True)


def _by_position(i: int, array: Any) -> Any:
    """Give what has a sample in each row, and whose index is the row's number."""
    if not getattr(array, "shape", ()):
        cure = "; np.asarray of it is one" if isinstance(array, list | tuple) else ""
        raise TypeError(f"arrays[{i}]: expected an array with a sample in each row, got {type(array).__name__}{cure}")
    if is_array(array):
        return array
    if hasattr(array, "iloc"):
        return _Rows(array)
    if hasattr(array, "loc") and not hasattr(array, "isel"):  # xarray's are indexed by position
        raise TypeError(
            f"arrays[{i}]: {type(array).__name__} has rows by label (loc) but none by position (iloc); pass "
            "np.asarray of it"
        )
    # SciPy's sparse formats that have no rows to take.
    return array.tocsr() if hasattr(array, "tocsr") else array


def _samples(arrays: tuple[Array, ...]) -> int:
    if not arrays:
        raise TypeError("arrays: expected at least one array, got none")
    lengths = [int(array.shape[0]) for array in arrays]
    if len(set(lengths)) > 1:
        raise ValueError(f"arrays: expected the same number of samples in each, got {lengths}")
    if lengths[0] == 0:
        raise ValueError("arrays: expected at least one sample, got none")
    return lengths[0]


def _state_of(rng: Generator) -> Any:
    """The state of a generator, as plain data; None if it shows none."""
    state = getattr(getattr(rng, "bit_generator", None), "state", None)
    return copy.deepcopy(state) if isinstance(rng, np.random.Generator) and isinstance(state, dict) else None


def _generator_at(state: Any) -> np.random.Generator:
    """Make a new generator of this state."""
    kinds = (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
    name = state.get("bit_generator") if isinstance(state, Mapping) else None
    kind = next((kind for kind in kinds if kind.__name__ == name), None)
    try:
        if kind is None:
            raise ValueError(f"no bit generator is called {name!r}")
        generator: Any = kind(0)
        generator.state = state
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"state['generator']: expected a generator's state, got {error}. Nothing was loaded."
        ) from None
    return np.random.Generator(generator)


class Standardize:
    r"""Centre every feature and scale it to variance 1, with statistics that are kept for test time.

    .. math:: x' = (x - \mu) / \sigma, \qquad \mu = \text{mean over axis 0}, \quad
        \sigma^2 = \text{mean over axis 0 of } (x - \mu)^2

    Statistics are taken in float64 by two passes. A constant feature gets σ = 1, and becomes exactly 0.

    Attributes:
        mean: μ, float64, of the shape of one sample; None before ``fit``.
        scale: σ, the same.

    >>> x = np.array([[1.0, 5.0], [3.0, 5.0]])
    >>> s = rv.data.Standardize().fit(x)
    >>> s.transform(x).tolist(), s.transform(np.array([[5.0, 6.0]])).tolist()
    ([[-1.0, 0.0], [1.0, 0.0]], [[3.0, 1.0]])
    """

    def __init__(self) -> None:
        self.mean: Array | None = None
        self.scale: Array | None = None

    def fit(self, x: Array) -> Self:
        """Take the statistics of ``x``, samples along axis 0, and return self.

        Raises:
            TypeError: x is no floating array.
            ValueError: x has no samples, or a value that is not finite.
        """
        _check_floating(x)
        if x.ndim < 1 or len(x) == 0:
            raise ValueError(f"x: expected at least one sample along axis 0, got shape {x.shape}")
        wide = x.astype(np.float64)
        if not np.isfinite(wide).all():
            raise ValueError("x: expected finite values, got NaN or inf; leave those samples out")
        low = wide.min(axis=0)
        # A mean of equal numbers may miss them by an ulp, which would then be taken for their spread.
        mean = np.where(low == wide.max(axis=0), low, wide.mean(axis=0))
        wide -= mean
        deviation = np.sqrt((wide * wide).mean(axis=0))
        self.mean, self.scale = mean, np.where(deviation == 0, 1.0, deviation)
        return self

    def transform(self, x: Array) -> Array:
        """Give (x − μ)/σ in a new array of x's dtype, computed in float64.

        Raises:
            RuntimeError: before ``fit``.
            TypeError: x is no floating array.
            ValueError: samples of another shape than those of ``fit``.
        """
        mean, scale = self._statistics(x)
        return ((x.astype(np.float64) - mean) / scale).astype(x.dtype)

    def fit_transform(self, x: Array) -> Array:
        """Do ``fit(x)``, then give ``transform(x)``."""
        return self.fit(x).transform(x)

    def inverse(self, x: Array) -> Array:
        """Give x·σ + μ, the data as they were, in a new array of x's dtype.

        Raises:
            RuntimeError: before ``fit``.
            TypeError: x is no floating array.
            ValueError: samples of another shape than those of ``fit``.
        """
        mean, scale = self._statistics(x)
        return (x.astype(np.float64) * scale + mean).astype(x.dtype)

    def _statistics(self, x: Array) -> tuple[Array, Array]:
        if self.mean is None or self.scale is None:
            raise RuntimeError("Standardize: fit it to the training data first")
        _check_floating(x)
        if x.shape[1:] != self.mean.shape:
            raise ValueError(f"x: expected samples of shape {self.mean.shape} as in fit, got {x.shape[1:]}")
        return self.mean, self.scale


def _check_floating(x: Array) -> None:
    dtype = getattr(x, "dtype", None)
    if dtype is None:
        raise TypeError(f"x: expected a floating array, got {type(x).__name__}; np.asarray(x, np.float32) makes one")
    if dtype.kind != "f" and dtype.name != "bfloat16":
        raise TypeError(f"x: expected a floating array, got {dtype.name}; x.astype(np.float32) makes one")
