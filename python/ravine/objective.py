"""A loss of nested parameters as a function of one vector: what checks, diagnostics and full-batch methods share."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from ravine import _core, trees
from ravine.backends import array_module, backend_of, foreign, is_array

__all__ = [
    "Array",
    "Leaves",
    "LossAndGrad",
    "Objective",
    "Precision",
    "Tree",
    "adopt_params",
    "check_function",
    "evaluated",
    "gradients_like",
    "holds_float32",
    "integer",
    "loss_of",
    "number",
    "numbers",
    "readable",
    "rounding_unit",
    "scipy",
]

Array: TypeAlias = Any
Tree: TypeAlias = Any
Leaves: TypeAlias = dict[str, Array]
LossAndGrad: TypeAlias = Callable[[Tree], tuple[Any, Tree]]

#: Half an ulp of 1. What is not listed, as Python's own float, has float64's: vectors and losses are float64 here.
_UNITS = {
    "float32": 2.0**-24,
    "complex64": 2.0**-24,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
}


class Objective(_core.Undone):
    """A loss and its gradient at any float64 vector, which is written into the parameters and rounded to their dtype.

    As a context manager it restores the parameters bit for bit, also if an error is raised.

    Args:
        function: ``loss_and_grad(params)`` gives (loss, gradients in the nesting of params).
        params: any nesting of writable float arrays, all NumPy's or all CuPy's, or another library's that share their
            memory, as torch's tensors do. The function gets these very objects.
        argument: what to call the function in errors.

    Attributes:
        leaves: the arrays by their dotted names, NumPy's or CuPy's.
        xp: their array library; vectors are arrays of it.
        size: how many elements they have in all.
        precision: the coarsest dtype of parameters, and of losses and gradients seen so far.
        evaluations: how often the function was called.

    Raises:
        TypeError, ValueError: parameters that cannot be changed in place, named by their paths.
    """

    def __init__(self, function: LossAndGrad, params: Tree, argument: str = "loss_and_grad") -> None:
        check_function(argument, function)
        self.function, self.params, self.leaves = function, params, adopt_params(params)
        self.precision = Precision(self.leaves)
        first = next(iter(self.leaves.values()))
        self.xp, self._backend = array_module(first), backend_of(first)
        for name, array in self.leaves.items():
            if backend_of(array) is not self._backend:
                raise TypeError(f"{name}: expected an array on one device with the others; see ravine.to_device")
        self.size = sum(array.size for array in self.leaves.values())
        self.evaluations = 0
        self._saved = [array.copy() for array in self.leaves.values()]

    def undo(self) -> None:
        """Put the parameters back to the start."""
        for array, saved in zip(self.leaves.values(), self._saved, strict=True):
            array[...] = saved

    @property
    def roundoff(self) -> float:
        """Half an ulp of 1 in the coarsest dtype: of parameters, and of losses and gradients seen so far."""
        return self.precision.unit

    def point(self) -> Array:
        """Return where the parameters are now."""
        return self._flat(list(self.leaves.values()))

    def move(self, x: Array) -> None:
        """Write a vector into the parameters."""
        # What is too large for a parameter's dtype becomes inf there, and shows in the loss.
        with np.errstate(over="ignore"):
            for array, part in zip(self.leaves.values(), self._split(x), strict=True):
                array[...] = part

    def evaluate(self, x: Array) -> tuple[float, Array]:
        """Return loss and gradient at x, finite or not; the parameters stay there.

        Raises:
            TypeError, ValueError: gradients of another nesting, shape or array library, named by their paths.
        """
        self.move(x)
        self.evaluations += 1
        loss, gradients = evaluated(self.function(self.params), self.leaves, self.precision)
        return loss, self._flat(gradients)

    def loss(self, x: Array) -> float:
        """Return the loss at x, of a function that gives it alone or with gradients; the parameters stay there."""
        self.move(x)
        self.evaluations += 1
        result = self.function(self.params)
        return loss_of(result[0] if isinstance(result, tuple) else result, "loss")

    def finite(self, x: Array, where: str) -> tuple[float, Array]:
        """Return what `evaluate` does.

        Raises:
            ValueError: loss or gradient not finite, with the first such parameter's name.
        """
        loss, gradient = self.evaluate(x)
        if not math.isfinite(loss):
            raise ValueError(f"loss_and_grad: expected a finite loss, got {loss} {where}")
        for name, part in zip(self.leaves, self._split(gradient), strict=True):
            if not bool(self.xp.isfinite(part).all()):
                raise ValueError(f"loss_and_grad: expected finite gradients, got others in {name} {where}")
        return loss, gradient

    def vector(self, tree: Tree, argument: str = "loss_and_grad: gradients") -> Array:
        """Return a nesting like the parameters' as one vector."""
        return self._flat(gradients_like(self.leaves, tree, argument))

    def tree(self, x: Array) -> Tree:
        """Return a vector as new float64 arrays in the nesting of the parameters."""
        parts = iter(self._split(x))
        return trees.map(lambda _: next(parts).copy(), self.params)

    def random(self, rng: np.random.Generator) -> Array:
        """Return a vector of independent standard normal numbers, the same for NumPy and CuPy."""
        return self._backend.put(rng.standard_normal(self.size))

    def put(self, x: np.ndarray[Any, Any]) -> Array:
        """Return a NumPy array's elements where the parameters are."""
        return self._backend.put(x)

    def _flat(self, arrays: list[Array]) -> Array:
        return self.xp.concatenate([array.astype(np.float64).reshape(-1) for array in arrays])

    def _split(self, x: Array) -> list[Array]:
        parts, start = [], 0
        for array in self.leaves.values():
            parts.append(x[start : start + array.size].reshape(array.shape))
            start += array.size
        return parts


class Precision:
    """The coarsest dtype of parameters, losses and gradients: what is computed from them is no better than that.

    Attributes:
        unit: u, half an ulp of 1 in that dtype.
    """

    def __init__(self, leaves: Leaves) -> None:
        self.unit = self._own = rounding_unit(leaves)
        self._coarser: dict[str, str] = {}

    def see(self, what: str, nesting: Any) -> None:
        """Take note of the dtypes in a nesting."""
        for leaf in trees.leaves(nesting).values():
            if rounding_unit(leaf) > self._own:
                self.take(what, rounding_unit(leaf), _dtype_name(leaf))

    def take(self, what: str, unit: float, dtype: str = "float32") -> None:
        """Take note that something is as coarse as this, whatever its dtype says."""
        if unit >= self.unit:
            self.unit = unit
            self._coarser[what] = dtype

    @property
    def message(self) -> str:
        """Which are coarser than the parameters, to be added to a message; nothing if none is."""
        if not self._coarser:
            return ""
        said = ", ".join(f"{what} in {dtype}" for what, dtype in self._coarser.items())
        return f"; computed more coarsely than the parameters ({said}), whose rounding counts"


def adopt_params(params: Tree) -> Leaves:
    """Return the parameters by their names as NumPy's or CuPy's arrays over their memory.

    Raises:
        TypeError, ValueError: the first that is no float array, or that cannot be changed in place, by its name.
    """
    given = trees.leaves(params)
    leaves = {name: foreign.adopt(leaf, name, True) for name, leaf in given.items()}
    for name, array in leaves.items():
        dtype = getattr(array, "dtype", None)
        if dtype is None or not is_array(array) or dtype.kind != "f" or dtype.itemsize > 8:
            got, cure = type(array).__name__, "np.array(x, np.float64)"
            if dtype is not None and is_array(array):
                got, cure = dtype.name, "x.astype(np.float32)"
                if dtype.kind == "c":
                    cure = "its real view, x.view(x.real.dtype), and its gradient's"
            raise TypeError(f"{name}: expected an array of float64, float32 or float16, got {got}; pass {cure}")
        if not getattr(array.flags, "writeable", True):
            raise TypeError(f"{name}: expected a writable array, got a read-only one; pass a copy")
    if not any(array.size for array in leaves.values()):
        raise ValueError("params: expected at least one element, got none")
    if len({id(leaf) for leaf in given.values()}) < len(leaves):
        raise ValueError("params: expected every array once, got the same array under two names")
    return leaves


def readable(x: Any, name: str) -> Any:
    """Return NumPy's or CuPy's array over another library's memory, to be read; Python's numbers as they are.

    NumPy converts it: methods of other libraries may warn of float64, which JAX does not have by default.

    Raises:
        TypeError: one that cannot be shared, by its name.
    """
    array = foreign.adopt(x, name, False)
    return array if is_array(array) or not hasattr(array, "__array__") else np.asarray(array)


def evaluated(result: Any, leaves: Leaves, precision: Precision) -> tuple[float, list[Array]]:
    """Return loss and gradients of what a ``loss_and_grad`` returned, and take note of their dtypes.

    Raises:
        TypeError, ValueError: another pair, or gradients unlike the parameters, named by their paths.
    """
    if not isinstance(result, tuple | list) or len(result) != 2:
        got = f"{len(result)} items" if isinstance(result, tuple | list) else f"{type(result).__name__} alone"
        raise TypeError(f"loss_and_grad: expected (loss, gradients), got {got}; return both")
    loss, gradients = loss_of(result[0]), gradients_like(leaves, result[1])
    precision.see("loss", result[0])
    precision.see("gradients", result[1])
    return loss, gradients


def loss_of(value: Any, argument: str = "loss_and_grad") -> float:
    """Return a loss of any library as a float.

    Raises:
        TypeError: no real number, or several.
    """
    loss = readable(value, f"{argument}: loss")
    if getattr(loss, "size", 1) != 1:
        raise TypeError(f"{argument}: expected one number as loss, got shape {loss.shape}; return its sum or mean")
    dtype = getattr(loss, "dtype", None)
    if isinstance(loss, complex) or (dtype is not None and dtype.kind == "c"):
        raise TypeError(f"{argument}: expected a real number as loss, got a complex one; return its real part")
    try:
        return float(loss.reshape(()) if is_array(loss) else "no number" if isinstance(loss, str | bytes) else loss)
    except (TypeError, ValueError):
        raise TypeError(f"{argument}: expected a number as loss, got {type(value).__name__}") from None


def check_function(argument: str, function: Any) -> None:
    """Make sure that it can be called.

    Raises:
        TypeError: it cannot, by its name.
    """
    if not callable(function):
        raise TypeError(f"{argument}: expected a function, which comes before params, got {type(function).__name__}")


def number(name: str, value: Any, expected: str, holds: Callable[[float], bool]) -> float:
    """Return an argument as a float.

    Raises:
        TypeError: no number, by its name.
        ValueError: a number that does not hold, by its name.
    """
    try:
        found = float("no number" if isinstance(value, str | bytes | bool) else value)
    except (TypeError, ValueError):
        cure = "; of a schedule pass one step's value" if callable(value) else ""
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}{cure}") from None
    if not holds(found):
        raise ValueError(f"{name}: expected {expected}, got {value}")
    return found


def numbers(name: str, values: Any) -> list[float]:
    """Return an argument that is a sequence of numbers as floats.

    Raises:
        TypeError: no sequence, or a member that is no number, by its name.
    """
    try:
        given = list(values)
    except TypeError:
        raise TypeError(f"{name}: expected a sequence of numbers, got {type(values).__name__}; pass [x]") from None
    return [number(f"{name}[{i}]", value, "a number", lambda _: True) for i, value in enumerate(given)]


def integer(name: str, value: Any, least: int) -> int:
    """Return an argument as an int.

    Raises:
        ValueError: no integer, or below the least, by its name.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")
    return int(value)


def gradients_like(leaves: Leaves, tree: Tree, argument: str = "loss_and_grad: gradients") -> list[Array]:
    """Copy gradients as float64, in the order of the leaves: the next call of the function may overwrite its own.

    Raises:
        TypeError, ValueError: another nesting, shape or array library than the parameters', or no real numbers.
    """
    found = {
        name: np.asarray(leaf) if isinstance(leaf, float | int) else readable(leaf, f"{argument}: {name}")
        for name, leaf in trees.leaves(tree).items()
    }
    wrong = [f"missing {name}" for name in leaves if name not in found]
    wrong += [f"unknown {name}" for name in found if name not in leaves]
    for name in leaves.keys() & found.keys():
        shape = getattr(found[name], "shape", type(found[name]).__name__)
        if shape != leaves[name].shape:
            wrong.append(f"{name}: expected shape {leaves[name].shape}, got {shape}")
    if wrong:
        raise ValueError(f"{argument} unlike params: {'; '.join(wrong)}")
    for name, array in leaves.items():
        library, got = array_module(array), array_module(found[name])
        if got is not library:
            cure = "cupy.asnumpy(g)" if library is np else "cupy.asarray(g)"
            raise TypeError(
                f"{argument}: {name}: expected an array of {library.__name__} like its parameter, got "
                f"one of {got.__name__}; pass {cure}"
            )
        dtype = found[name].dtype
        if dtype.kind not in "fiu" and dtype.name != "bfloat16":
            raise TypeError(f"{argument}: {name}: expected real numbers, got {dtype.name}")
    return [found[name].astype(np.float64) for name in leaves]


def rounding_unit(*nestings: Any) -> float:
    """Return u, half an ulp of 1, of the coarsest dtype in any nestings of arrays and numbers of any library.

    What is computed from them is no better than that: parameters of float64 whose loss is float32 have float32's u.

    >>> from ravine.objective import rounding_unit
    >>> rounding_unit({"w": np.ones(2)}, 0.5) == 2.0**-53, rounding_unit(np.ones(2), np.float32(0.5)) == 2.0**-24
    (True, True)
    """
    names = (_dtype_name(leaf) for nesting in nestings for leaf in trees.leaves(nesting).values())
    return max((_UNITS.get(name, 2.0**-53) for name in names), default=2.0**-53)


def _dtype_name(leaf: Any) -> str:
    dtype = getattr(leaf, "dtype", "float64")
    # torch's dtypes have no name but "torch.float32".
    return str(getattr(dtype, "name", dtype)).rpartition(".")[2]


def holds_float32(x: Array) -> bool:
    """Whether all numbers are float32's, and not all float16's: counts, signs and other short numbers do not tell."""
    with np.errstate(over="ignore"):
        return bool((x == x.astype(np.float32)).all()) and bool((x != x.astype(np.float16)).any())


def scipy(name: str) -> Any:
    """Return a module of scipy, which is an extra.

    Raises:
        ModuleNotFoundError: scipy is not installed; ``pip install 'ravine[diagnose]'``.
    """
    try:
        return importlib.import_module(f"scipy.{name}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "this needs scipy, which is not installed: pip install 'ravine[diagnose]'", name=error.name
        ) from error
