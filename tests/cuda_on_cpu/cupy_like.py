"""A module in CuPy's place: NumPy computes, but its arrays refuse what CuPy's refuse.

What matters is where CuPy differs: nothing becomes a NumPy array or mixes with one by itself, results are arrays even
when 0-d, new memory holds garbage, and some names and keywords of NumPy do not exist.
"""

import ctypes
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np

_libc = ctypes.CDLL(None)
_libc.posix_memalign.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_size_t]
_libc.free.argtypes = [ctypes.c_void_p]
_libc.free.restype = None

#: Names of NumPy that CuPy has not, or not as functions of arrays.
MISSING = frozenset(
    """errstate seterr geterr seterrcall geterrcall nditer nested_iters longdouble clongdouble float128 complex256
    object_ str_ bytes_ void datetime64 timedelta64 ma matrix asmatrix bmat rec recarray memmap char strings lib
    ctypeslib f2py core _core emath""".split()  # noqa: SIM905 - a list would take a line a word
)
#: Attributes of NumPy's arrays that CuPy's have not.
MISSING_METHODS = frozenset(["byteswap", "ctypes", "getfield", "resize", "setfield", "setflags", "to_device"])
#: NumPy answers these by a Python bool, CuPy by an array.
ANSWERS_BY_ARRAY = frozenset(["allclose", "array_equal", "array_equiv"])
#: All the distributions that CuPy's Generator has: no normal, choice, permutation, shuffle.
DISTRIBUTIONS = frozenset(
    """beta binomial chisquare dirichlet exponential f gamma geometric hypergeometric integers logseries poisson power
    random standard_exponential standard_gamma standard_normal uniform""".split()  # noqa: SIM905 - a list would take a line a word
)


_devices = [0]  # the last one is current


class Device:
    """A device by its number; a context in which new arrays belong to it."""

    def __init__(self, device=None):
        self.id = _devices[-1] if device is None else getattr(device, "id", device)

    def __enter__(self):
        _devices.append(self.id)
        return self

    def __exit__(self, *exception):
        _devices.pop()

    def __int__(self):
        return self.id

    def __eq__(self, other):
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self):
        return hash(self.id)

    def synchronize(self):
        """Wait for the work given to this device: none is ever open."""


class Stream:
    """The one stream, on which everything is done at once."""

    ptr = 0

    def synchronize(self):
        """Wait for the work given to this stream: none is ever open."""

    def is_capturing(self):
        return False

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass


class _Memory:
    """Bytes that end where the allocation ends, so that the address sanitizer sees one read too many."""

    def __init__(self, nbytes):
        self.address = ctypes.c_void_p()
        if _libc.posix_memalign(ctypes.byref(self.address), 512, max(nbytes, 1)):
            raise MemoryError(nbytes)
        ctypes.memset(self.address, 0xFF, nbytes)  # NaN, or -1
        self.__array_interface__ = {
            "version": 3,
            "shape": (max(nbytes, 1),),
            "typestr": "|u1",
            "data": (self.address.value, False),
        }

    def __del__(self, free=_libc.free):
        free(self.address)


def _refuse_dtype(dtype):
    if dtype.name != "bfloat16" and (dtype.kind not in "biufc" or dtype.itemsize > (16 if dtype.kind == "c" else 8)):
        raise ValueError(f"Unsupported dtype {dtype}")


def _allocate(like):
    """Give new memory the shape, strides and dtype of a NumPy array."""
    _refuse_dtype(like.dtype)
    memory = np.asarray(_Memory(like.nbytes))
    return np.ndarray(like.shape, like.dtype, memory, strides=like.strides)


def _to_device(host):
    new = _allocate(host if host.flags.forc else np.empty(host.shape, host.dtype))
    new[...] = host
    return _wrap(new)


def _wrap(array, device=None):
    self = object.__new__(ndarray)
    self._a = np.asarray(array)
    self.device = Device(device)
    return self


def _call(function, args, kwargs, *, host_arrays=False):
    """Call NumPy's function with the arrays behind device arrays, and wrap what it returns."""
    for keyword in ("where", "initial", "subok"):
        if keyword in kwargs:
            raise TypeError(f"{getattr(function, '__name__', function)}: CuPy has no argument {keyword!r}")
    owners = {}

    def unwrap(x):
        if isinstance(x, ndarray):
            owners[id(x._a)] = x
            return x._a
        if isinstance(x, np.ndarray) and x.ndim > 0 and not host_arrays:
            raise TypeError(f"Unsupported type {type(x)}")
        if type(x) in (list, tuple):
            return type(x)(map(unwrap, x))
        return x

    def wrap(x):
        if isinstance(x, np.ndarray | np.generic):
            if id(x) in owners:
                return owners[id(x)]
            view = _wrap(x, device)
            of = (owner for owner in owners.values() if x.base is not None and np.may_share_memory(owner._a, x))
            view.base = next((owner if owner.base is None else owner.base for owner in of), None)
            return view
        if isinstance(x, list | tuple):
            return type(x)(*map(wrap, x)) if hasattr(x, "_fields") else type(x)(map(wrap, x))
        return x

    args, kwargs = [unwrap(x) for x in args], {name: unwrap(x) for name, x in kwargs.items()}
    devices = {owner.device.id for owner in owners.values()}
    if len(devices) > 1:
        raise ValueError(f"Array device must be same as the current device: {sorted(devices)}")
    device = devices.pop() if devices else None
    return wrap(function(*args, **kwargs))


class _Flags:
    def __init__(self, flags):
        self.c_contiguous, self.f_contiguous, self.owndata = flags.c_contiguous, flags.f_contiguous, flags.owndata
        self.forc, self.fnc = flags.forc, flags.fnc

    def __getitem__(self, name):
        return getattr(self, name.lower())


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):  # noqa: N801 - CuPy's name
    """An array that is on the device as far as Python can tell."""

    __module__ = "cupy"
    __array_priority__ = 100

    def __init__(self, shape, dtype=float, memptr=None, strides=None, order="C"):
        if memptr is not None or strides is not None:
            raise NotImplementedError("the stand-in allocates its own memory")
        self._a = _allocate(np.empty(shape, dtype, order))
        self.device = Device()

    dtype = property(lambda self: self._a.dtype)
    strides = property(lambda self: self._a.strides)
    size = property(lambda self: self._a.size)
    ndim = property(lambda self: self._a.ndim)
    nbytes = property(lambda self: self._a.nbytes)
    itemsize = property(lambda self: self._a.itemsize)
    flags = property(lambda self: _Flags(self._a.flags))
    T = property(lambda self: self.transpose())
    #: The array that a view is of: CuPy's keeps it alive, too.
    base = None
    real = property(lambda self: _wrap(self._a.real, self.device))
    imag = property(lambda self: _wrap(self._a.imag, self.device))

    @property
    def shape(self):
        return self._a.shape

    @shape.setter
    def shape(self, shape):
        new = self._a.reshape(shape)
        if new.size and not np.may_share_memory(new, self._a):
            raise AttributeError("incompatible shape")
        self._a = new

    @property
    def data(self):
        address = self._a.__array_interface__["data"][0] if self._a.nbytes else 0
        return SimpleNamespace(ptr=address, device=self.device, device_id=self.device.id)

    @property
    def __cuda_array_interface__(self):
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.data.ptr, False),
            "strides": None if self.flags.c_contiguous else self.strides,
            "version": 3,
            "stream": 1,
        }

    # To the host and back: only when asked.

    def get(self, stream=None, order="C", out=None, blocking=True):
        if out is None:
            return np.array(self._a, order=order)
        out[...] = self._a
        return out

    def set(self, array, stream=None):
        if not isinstance(array, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if self.dtype != array.dtype:
            raise TypeError(f"{array.dtype} array cannot be set to {self.dtype} array")
        if self.shape != array.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {array.shape}")
        if not self._a.flags.forc:
            raise RuntimeError("Cannot set to non-contiguous array")
        self._a[...] = array

    def item(self, *index):
        return self._a.item(*index)

    def tolist(self):
        return self._a.tolist()

    def tobytes(self, order="C"):
        return self._a.tobytes(order)

    def __array__(self, *args, **kwargs):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __bool__(self):
        return bool(self._a)

    def __int__(self):
        return int(self._a)

    def __float__(self):
        return float(self._a)

    def __complex__(self):
        return complex(self._a)

    def __index__(self):
        return self._a.__index__()

    def __repr__(self):
        return repr(self._a)

    def __str__(self):
        return str(self._a)

    def __format__(self, spec):
        return format(self._a[()], spec)

    # Elements.

    def __len__(self):
        return len(self._a)

    def __iter__(self):
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index):
        return _call(lambda a, i: a[i], (self, index), {}, host_arrays=True)

    def __setitem__(self, index, value):
        if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0):
            raise TypeError(f"Unsupported type {type(value)}")
        _call(lambda a, i, v: a.__setitem__(i, v), (self, index, value), {}, host_arrays=True)

    # Everything else is NumPy's.

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        if out is not None:
            kwargs["out"] = out if len(out) > 1 else out[0]
        return _call(getattr(ufunc, method), inputs, kwargs)

    def __array_function__(self, function, types, args, kwargs):
        if function.__name__ in MISSING:
            return NotImplemented
        return getattr(module, function.__name__)(*args, **kwargs)

    def __getattr__(self, name):
        if name.startswith("_") or name in MISSING_METHODS:
            raise AttributeError(f"'cupy.ndarray' object has no attribute {name!r}")
        if not callable(getattr(np.ndarray, name)):
            raise AttributeError(f"the stand-in has no attribute {name!r}")
        return lambda *args, **kwargs: _call(getattr(np.ndarray, name), (self, *args), kwargs)

    def __reduce__(self):
        return _array, (self.get(),)

    def __copy__(self):
        return _call(np.copy, (self,), {})

    def __deepcopy__(self, memo):
        return _call(np.copy, (self,), {})


class Generator:
    """Draws NumPy's numbers; has the methods of CuPy's."""

    __module__ = "cupy.random._generator_api"

    def __init__(self, seed=None):
        self._rng = np.random.default_rng(seed)

    def __getattr__(self, name):
        if name not in DISTRIBUTIONS:
            raise AttributeError(f"'Generator' object has no attribute {name!r}")
        takes_dtype = name in ("integers", "random", "standard_exponential", "standard_gamma", "standard_normal")

        def draw(*args, dtype=None, **kwargs):
            if dtype is not None and takes_dtype:
                kwargs["dtype"] = dtype
            # NumPy's answer without a size is a Python number.
            drawn = _call(lambda *a, **k: np.asarray(getattr(self._rng, name)(*a, **k)), args, kwargs)
            return drawn if dtype is None else drawn.astype(dtype, copy=False)

        return draw


class _Function:
    """A function of NumPy, or a ufunc with its methods, for device arrays."""

    def __init__(self, function):
        self._function, self.__name__ = function, function.__name__

    def __call__(self, *args, **kwargs):
        result = _call(self._function, args, kwargs)
        return _wrap(np.asarray(result)) if self.__name__ in ANSWERS_BY_ARRAY else result

    def __getattr__(self, name):
        value = getattr(self._function, name)
        return _Function(value) if callable(value) else value


class _Module(ModuleType):
    def __init__(self, name, numpy, **own):
        super().__init__(name)
        self._numpy = numpy
        self.__spec__ = ModuleSpec(name, None)
        self.__dict__.update(own)

    def __getattr__(self, name):
        if name.startswith("__") or name in MISSING:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(self._numpy, name)
        if isinstance(value, ModuleType):
            return _Module(f"{self.__name__}.{name}", value)
        return _Function(value) if callable(value) and not isinstance(value, type) else value


def _array(obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, blocking=False):
    if isinstance(obj, ndarray):
        if obj.device != Device():  # the current one gets a copy
            return _to_device(np.array(obj._a, dtype, order=order, ndmin=ndmin))
        return _call(np.array, (obj,), {"dtype": dtype, "copy": copy, "order": order, "ndmin": ndmin})
    made = _call(np.array, (obj,), {"dtype": dtype, "order": order, "ndmin": ndmin}, host_arrays=True)
    return _to_device(made._a)


def _asarray(a, dtype=None, order=None, blocking=False):
    return _array(a, dtype, copy=None if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else False, order=order or "K")


def _ascontiguousarray(a, dtype=None):
    return _asarray(a, dtype, "C")


def _asfortranarray(a, dtype=None):
    return _asarray(a, dtype, "F")


def _empty(shape, dtype=float, order="C"):
    return ndarray(shape, dtype, order=order)


def _empty_like(prototype, dtype=None, order="K", subok=None, shape=None):
    if not isinstance(prototype, ndarray):
        raise TypeError(f"Unsupported type {type(prototype)}")
    return _wrap(_allocate(np.empty_like(prototype._a, dtype, order, shape=shape)), prototype.device)


def _asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
    return a.get(stream, order, out) if isinstance(a, ndarray) else np.asarray(a, order=order)


def _get_array_module(*args):
    return module if any(isinstance(a, ndarray) for a in args) else np


#: To be found under sys.modules["cupy"].
module = _Module(
    "cupy",
    np,
    __version__="0.0.0",
    ndarray=ndarray,
    array=_array,
    asarray=_asarray,
    asanyarray=_asarray,
    ascontiguousarray=_ascontiguousarray,
    asfortranarray=_asfortranarray,
    empty=_empty,
    empty_like=_empty_like,
    asnumpy=_asnumpy,
    get_array_module=_get_array_module,
    is_available=lambda: True,
    lib=_Module(
        "cupy.lib",
        SimpleNamespace(),
        stride_tricks=_Module(
            "cupy.lib.stride_tricks",
            SimpleNamespace(),
            as_strided=lambda x, shape=None, strides=None: _call(
                np.lib.stride_tricks.as_strided, (x, shape, strides), {}
            ),
        ),
    ),
    random=_Module("cupy.random", np.random, Generator=Generator, default_rng=Generator),
    cuda=_Module(
        "cupy.cuda",
        SimpleNamespace(),
        Device=Device,
        Stream=Stream,
        get_current_stream=Stream,
        is_available=lambda: True,
        runtime=SimpleNamespace(getDeviceCount=lambda: 2),
    ),
)
