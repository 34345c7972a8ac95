"""What is tried at random, and what must hold whatever comes: no crash, no other error than is said, all or nothing.

A target returns what it saw in words, by which inputs are told from each other, or raises: that is a finding.
"""

import ctypes
import os
import tempfile
import warnings
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np

import ravine as rv
from tests import test_forged

CORE = rv._core.__file__
LIBRARY = os.environ.get("FUZZ_LIBRARY", "target/c/release/libravine.so")
warnings.simplefilter("ignore")
np.seterr(all="ignore")

#: What the docstrings say.
REFUSALS = (TypeError, ValueError, FloatingPointError, RuntimeError, MemoryError)
CLASSES = [
    c for c in vars(rv).values() if isinstance(c, type) and issubclass(c, rv.Optimizer) and c is not rv.Optimizer
]
DTYPES = ["float32", "float64", "float16", ml_dtypes.bfloat16, "int32", ">f4", "complex64", "bool", "O"]


def refused(error):
    """Check an error, and tell it."""
    assert str(error), f"{type(error).__name__} without a word"
    assert len(str(error)) < 25_000
    return f"{type(error).__name__}: {error}"


# Arrays and nestings


def array(draw):
    shape = tuple(draw.pick([2, 3, 1, 0, 7, 70]) for _ in range(draw.pick([1, 2, 0, 3])))
    dtype = np.dtype(DTYPES[draw.below(4)] if draw.often() else draw.pick(DTYPES))
    made = np.zeros(shape, dtype)
    if dtype.kind != "O":
        made.flat[:] = np.array([draw.usual() for _ in range(min(made.size, 5))] or [0.0]).repeat(made.size)[
            : made.size
        ]
    kind = 0 if draw.often(4) else draw.below(9)
    if kind == 1:
        made = made.T
    elif kind == 2:
        made = made[..., ::-1] if made.ndim else made
    elif kind == 3:
        made = np.repeat(made, 2, axis=-1)[..., ::2] if made.ndim else made
    elif kind == 4:
        made = np.broadcast_to(made, (2, *made.shape))
    elif kind == 5:
        made.flags.writeable = False
    elif kind == 6 and dtype.kind != "O":
        made = np.frombuffer(bytearray(made.nbytes + 1), np.uint8)[1:].view(dtype).reshape(shape)
    elif kind == 7:
        made = made.astype(dtype)[()] if made.ndim == 0 else made
    elif kind == 8:
        made = np.asfortranarray(made)
    return made


def nesting(draw, leaf, depth=0):
    kind = draw.below(5) if depth < 3 else 0
    if kind == 1:
        return {draw.pick(["a", "b", "w.x", "", 3, "é"]): nesting(draw, leaf, depth + 1) for _ in range(draw.below(4))}
    if kind in (2, 3):
        items = [nesting(draw, leaf, depth + 1) for _ in range(draw.below(4))]
        return items if kind == 2 else tuple(items)
    return leaf()


def leaves(tree):
    if isinstance(tree, dict):
        return [x for item in tree.values() for x in leaves(item)]
    return [x for item in tree for x in leaves(item)] if isinstance(tree, list | tuple) else [tree]


def bytes_of(tree):
    return [x.tobytes() if isinstance(x, np.ndarray | np.generic) else x for x in leaves(tree)]


def state_of(opt):
    states = [a.tobytes() for own in opt._states().values() for a in own.values()]
    kept = [a.tobytes() for own in opt._engine.kept for a in own.values()]
    return bytes_of(list(opt._engine.parameters)), states, kept, opt.steps, list(opt._engine.updates)


def like(draw, tree):
    """Gradients for parameters, right or nearly."""
    if isinstance(tree, dict):
        made = {key: like(draw, item) for key, item in tree.items() if draw.often(32)}
        return made if draw.often(32) else {**made, "more": np.ones(2)}
    if isinstance(tree, list | tuple):
        items = [like(draw, item) for item in tree if draw.often(32)]
        return type(tree)(items)
    if not draw.often(24):
        return draw.pick([None, tree, 1.0, "x", np.ones(3), [tree], np.float32(2), tree.ravel(), tree[None]])
    g = np.full(tree.shape, draw.usual()).astype(tree.dtype) if tree.dtype.kind in "fV" else tree.copy()
    return g if draw.often(6) else draw.pick([g.T.copy().T, np.repeat(g[..., None], 2, -1)[..., 0], g.astype("f2")])


def options_of(draw, cls):
    common = {
        "lr": lambda: draw.usual() if draw.often(3) else rv.schedules.cosine(0.1, 10),
        "weight_decay": draw.usual,
        "l2": draw.usual,
        "maximize": lambda: draw.below(2) == 1,
        "clip_value": draw.usual,
        "clip_norm": draw.usual,
        "nonfinite": lambda: draw.pick(["skip", "raise", "propagate", "x"]),
        "lookahead": lambda: rv.Lookahead(1 + draw.below(3), alpha=draw.pick([0.5, 1.0, 0.1])),
        "average": lambda: draw.pick([rv.EMA, rv.SWA])(),
        "master": lambda: draw.pick(["float32", "split", 3]),
        "states": lambda: draw.pick(["8bit", "bfloat16", "f"]),
        "rounding": lambda: draw.pick(["stochastic", "nearest", None]),
        "groups": lambda: [(draw.pick(["*", "a*", "0", "w"]), {draw.pick(["lr", "l2", "eps", "beta"]): draw.usual()})],
        "like": lambda: draw.pick(["torch", "keras", "optax", "mlx", "paper", "chainer"]),
        "betas": lambda: (draw.usual(), draw.usual()),
        "momentum": draw.usual,
        "eps": draw.usual,
        "nesterov": lambda: draw.below(2) == 1,
    }
    return {name: common[name]() for name in (draw.pick(list(common)) for _ in range(draw.below(5)))}


def arrays(draw):
    """An optimizer over a nesting of arrays, and steps with gradients that fit or do not."""
    seen = []

    def leaf():
        if seen and not draw.often(16):
            return draw.pick(seen)
        seen.append(array(draw))
        return seen[-1]

    params = nesting(draw, leaf)
    before = bytes_of(params)
    cls = draw.pick(CLASSES)
    try:
        opt = cls(params, **options_of(draw, cls))
    except REFUSALS as error:
        assert bytes_of(params) == before, "a constructor that raised has changed a parameter"
        return refused(error)
    said = ""
    for _ in range(3):
        given, state = like(draw, params), state_of(opt)
        of_grads = bytes_of(given)
        try:
            info = opt.step(given, grad_scale=draw.pick([None, None, None, 8.0, draw.usual()]))
            said = f"{cls.__name__} {info.skipped} {info.nonfinite is None}"
            assert not info.skipped or state_of(opt) == state, "a step that was left out has changed something"
        except REFUSALS as error:
            said = refused(error)
            assert state_of(opt) == state, "a step that raised has changed something"
        if not any(g is p for g in leaves(given) for p in leaves(params)):
            assert bytes_of(given) == of_grads, "a gradient was written"
    saved = opt.state_dict()  # which takes changes from outside into exact copies
    state = state_of(opt)
    opt.load_state_dict(saved)
    assert state_of(opt)[1:] == state[1:], "a state that was loaded is another"
    return said


def layouts(draw):
    """The same bits for parameters and gradients that lie otherwise in memory."""
    cls, rng = draw.pick(CLASSES), np.random.default_rng(draw.below(256))
    shape = tuple(draw.pick([3, 1, 5, 64, 130]) for _ in range(draw.pick([2, 1, 2, 3])))
    dtype = np.dtype(DTYPES[draw.below(4)])
    start = rng.standard_normal(shape).astype(dtype)
    options, kinds, results = options_of(draw, cls), (0, draw.below(4)), []
    grads = [(rng.standard_normal(shape) * 10.0 ** draw.below(4)).astype(dtype) for _ in range(3)]
    for kind in kinds:
        try:
            w = placed(start, kind)
            opt = cls({"w": w}, **options)
            for g in grads:
                opt.step({"w": placed(g, kind)})
            results.append((np.ascontiguousarray(w).tobytes(), opt.steps))
        except REFUSALS as error:
            results.append(refused(error))
    same = results[0] == results[1]
    if not same and all(isinstance(r, tuple) for r in results):
        a, b = (np.frombuffer(r[0], dtype).astype(float) for r in results)
        same = bool(((a == b) | (np.isnan(a) & np.isnan(b))).all())
    assert same, (cls.__name__, options, dtype, shape, kinds)
    return f"{cls.__name__} {dtype} {kinds}" if isinstance(results[0], tuple) else results[0]


def placed(a, kind):
    if kind == 1:
        return np.asfortranarray(a)
    if kind == 2:
        made = np.zeros((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)[..., ::2]
    elif kind == 3:
        made = np.zeros_like(a)[::-1]
    else:
        return a.copy()
    made[...] = a
    return made


# Files


@cache
def _folder():
    return tempfile.TemporaryDirectory(dir=test_forged.MEMORY)


def load(draw):
    """A checkpoint, changed: its bytes, or its header with right checksums."""
    original, _ = test_forged._saved()
    path = Path(_folder().name, "run.safetensors")
    if draw.below(4) == 0:
        data = bytearray(original)
        for _ in range(1 + draw.below(4)):
            at = draw.below(65536) % len(data)
            data[at : at + draw.below(3)] = bytes(draw.byte() for _ in range(draw.below(5)))
        found = test_forged.attempt(path, bytes(data))
        return "loaded" if found else "refused"

    def change(header, meta, _):
        for _ in range(1 + draw.below(3)):
            tree = {"meta": meta, "header": header}
            where = draw.pick([place for place in test_forged.paths(tree) if len(place) > 1])
            holder = tree
            for key in where[:-1]:
                holder = holder[key]
            kind = draw.below(3)
            if kind == 0 or where[-1] == "__metadata__":
                holder[where[-1]] = draw.pick(test_forged.REPLACEMENTS)
            elif kind == 1:
                del holder[where[-1]]
            elif isinstance(holder, dict):
                holder[draw.pick(["", "x", "a.b", "params/w"])] = holder.pop(where[-1])

    try:
        data = test_forged.forged(original, change)
    except (KeyError, TypeError, ValueError, AttributeError):
        return "not forged"
    found = test_forged.attempt(path, data)
    return f"loaded {found[2].message}" if found else "refused"


# C


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("ndim", ctypes.c_size_t),
        ("shape", ctypes.POINTER(ctypes.c_size_t)),
        ("strides", ctypes.POINTER(ctypes.c_ssize_t)),
    ]


SIZES = {1: 8, 2: 4, 3: 2, 4: 2, 5: 1, 6: 1}
ROOM = 1 << 15


class Memory:
    """A piece of memory that all tensors are in, so that what is not NULL is valid."""

    def __init__(self, draw, library):
        self.draw, self.library, self.alive = draw, library, []
        self.bytes = np.zeros(ROOM, np.uint8)
        halves = self.bytes.view(np.float32)
        halves[:] = np.linspace(-1, 1, len(halves))
        self.next = 64

    def tensor(self, dtype=None, shape=None):
        draw = self.draw
        dtype = draw.pick([2, 1, 3, 4]) if dtype is None else dtype
        if not draw.often(32):
            dtype = draw.pick([0, 5, 6, 7, -1, 2**31 - 1])
        size = SIZES.get(dtype, 8)
        if shape is None or not draw.often(32):
            shape = [draw.pick([3, 1, 2, 0, 17, 130]) for _ in range(draw.pick([1, 2, 0, 3]))]
        count = int(np.prod(shape, dtype=object))
        if size * count > 4096:
            shape, count = [3], 3
        strides = None
        if not draw.often(5) and shape:
            order = sorted(range(len(shape)), key=lambda _: draw.byte())
            strides, step = [0] * len(shape), size * (1 + draw.below(2))
            for axis in order:
                strides[axis], step = step, step * max(shape[axis], 1)
        if not draw.often(40):
            shape, strides = draw.pick([[2**63, 2], [2**32, 2**32, 2], [0, 2**63], [2**64 - 1, 0]]), None
        extent = (
            1 + sum((n - 1) * s for n, s in zip(shape, strides or [], strict=False)) + size if strides else size * count
        )
        begin = self.next if draw.often(16) else draw.below(ROOM // 2)
        begin += 0 if not draw.often(32) else -begin % 8
        if begin + extent + 64 > ROOM:
            begin = 64
        self.next = begin + extent + 8
        data = self.bytes.ctypes.data + begin if draw.often(64) else None
        c_shape = (ctypes.c_size_t * len(shape))(*shape)
        c_strides = (ctypes.c_ssize_t * len(shape))(*strides) if strides else None
        self.alive += [c_shape, c_strides]
        return Tensor(data, dtype, len(shape), c_shape, c_strides)

    def call(self, name, *args):
        """Call; whatever was refused must have changed nothing."""
        before = self.bytes.copy()
        status = getattr(self.library, name)(*args)
        assert 0 <= status <= 11, (name, status, self.library.rv_last_error())
        if status:
            assert (self.bytes == before).all(), (name, status, "has changed memory and refused")
            assert self.library.rv_last_error(), (name, status)
        return status


@cache
def _library():
    library = ctypes.CDLL(os.path.abspath(LIBRARY))
    library.rv_last_error.restype = ctypes.c_char_p
    library.rv_rules.restype = ctypes.POINTER(ctypes.c_char_p)
    for function in ("hyperparameters", "states", "products"):
        getattr(library, f"rv_rule_{function}").restype = ctypes.POINTER(ctypes.c_char_p)
    return library


def listed(pointer):
    found = []
    while pointer and pointer[len(found)]:
        found.append(pointer[len(found)])
    return found


def c(draw):
    """Calls of the C library, one after the other: each returns a status, and changes all or nothing."""
    library = _library()
    memory, statuses = Memory(draw, library), []
    size, number = ctypes.c_size_t, ctypes.c_double
    rule = draw.pick(listed(library.rv_rules())) if draw.often(32) else b"nosuchrule"
    opt, one = ctypes.c_void_p(), size()
    statuses.append(
        memory.call("rv_optimizer_new", rule, size(draw.pick([1, 2, 3, 0, 65536, 2**40])), ctypes.byref(opt))
    )
    params = []
    try:
        for _ in range(2 + draw.below(14)):
            kind = draw.below(14)
            if kind <= 2 and opt:
                p = memory.tensor()
                dtypes, lengths = (ctypes.c_int32 * 40)(), (size * 40)()
                status = memory.call(
                    "rv_optimizer_state_arrays", opt, ctypes.byref(p), dtypes, lengths, size(40), ctypes.byref(one)
                )
                kept = [memory.tensor(dtypes[i], [lengths[i]]) for i in range(one.value)] if status == 0 else []
                for i, state in enumerate(kept):
                    if lengths[i] and p.ndim and draw.often(4) and state.ndim == 1:
                        state.ndim, state.shape, state.strides = p.ndim, p.shape, None
                array_of = (Tensor * max(len(kept), 1))(*kept)
                status = memory.call(
                    "rv_optimizer_add", opt, size(draw.below(3)), ctypes.byref(p), array_of, size(len(kept))
                )
                params += [p] * (status == 0)
                memory.alive += [p, array_of]
            elif kind <= 4 and opt:
                names = [
                    *listed(library.rv_rule_hyperparameters(rule)),
                    b"weight_decay",
                    b"l2",
                    b"maximize",
                    b"lr",
                    b"x",
                ]
                status = memory.call(
                    "rv_optimizer_set", opt, size(draw.below(3)), draw.pick(names), number(draw.usual())
                )
            elif kind == 5 and opt:
                names = [
                    b"clip_norm",
                    b"clip_value",
                    b"nonfinite",
                    b"states",
                    b"rounding",
                    b"grad_scale",
                    b"master",
                    b"y",
                ]
                names += [b"ema", b"swa", b"lookahead", b"average", b"correction", b"clip_eps"]
                status = memory.call("rv_optimizer_set_option", opt, draw.pick(names), number(draw.usual()))
            elif kind <= 8 and opt:
                shapes = [[p.shape[i] for i in range(p.ndim)] for p in params]
                grads = [
                    memory.tensor(p.dtype, shape) if draw.often(16) else Tensor()
                    for p, shape in zip(params, shapes, strict=True)
                ]
                n = len(grads) if draw.often(16) else draw.below(len(grads) + 1)
                status = memory.call("rv_optimizer_step", opt, (Tensor * max(len(grads), 1))(*grads), size(n), None)
                if status == 0:
                    first = size()
                    at = size(draw.below(4))
                    memory.call("rv_optimizer_nonfinite", opt, at, ctypes.byref(one), ctypes.byref(first))
            elif kind == 9 and opt:
                counts = (ctypes.c_uint64 * max(len(params), 1))(*(draw.pick([0, 1, 5, 2**53, 2**63]) for _ in params))
                steps = ctypes.c_uint64(draw.pick([0, 1, 2**40, 2**64 - 1]))
                status = memory.call("rv_optimizer_set_counters", opt, steps, counts, size(len(params)))
            elif kind == 10:
                tensors = [memory.tensor() for _ in range(draw.below(4))]
                many, out = (Tensor * max(len(tensors), 1))(*tensors), number()
                name = draw.pick(["rv_global_norm", "rv_clip_by_global_norm", "rv_scale", "rv_count_nonfinite"])
                middle = [number(draw.number())] if name in ("rv_clip_by_global_norm", "rv_scale") else []
                last = [] if name == "rv_scale" else [ctypes.byref(one if name == "rv_count_nonfinite" else out)]
                status = memory.call(name, many, size(len(tensors)), *middle, *last)
            elif kind == 11:
                x = memory.tensor()
                shape = [x.shape[i] for i in range(x.ndim)] if x.data else [3]
                status = memory.call("rv_convert", ctypes.byref(x), ctypes.byref(memory.tensor(shape=shape)))
            else:
                status = normalised(draw, memory, kind)
            statuses.append(status)
    finally:
        if opt:
            library.rv_optimizer_free(opt)
    # In letters, since numbers do not tell inputs apart.
    return f"{rule.decode()} {''.join('ABCDEFGHIJKL'[status] for status in statuses[-4:])}"


def normalised(draw, memory, kind):
    """Call one of the norms."""
    x = memory.tensor()
    shape = [x.shape[i] for i in range(x.ndim)]
    axis = draw.below(4)
    many = np.zeros(200_000)
    room = [many[:100_000].ctypes.data_as(ctypes.c_void_p), many[100_000:].ctypes.data_as(ctypes.c_void_p)]
    if max(shape, default=1) > 10_000:
        shape = [3]
    channels = [shape[axis]] if axis < len(shape) else [3]
    of_axes = channels if kind == 12 else shape[max(len(shape) - axis, 0) :]
    vectors = [memory.tensor(draw.pick([x.dtype, 2]), of_axes) for _ in range(4)]
    vectors = [ctypes.byref(v) if draw.often() else None for v in vectors]
    out, eps = memory.tensor(x.dtype, shape), ctypes.c_double(draw.usual())
    axis = ctypes.c_size_t(axis)
    if kind == 12:
        training, momentum = ctypes.c_int32(draw.below(3)), ctypes.c_double(draw.usual())
        name = draw.pick(["rv_batch_norm", "rv_batch_norm_relu"])
        return memory.call(name, ctypes.byref(x), axis, *vectors, training, momentum, eps, ctypes.byref(out), *room)
    return memory.call("rv_layer_norm", ctypes.byref(x), axis, *vectors[:2], eps, ctypes.byref(out), *room)


TARGETS = {"arrays": arrays, "layouts": layouts, "load": load, "c": c}
