"""The optimizer for arrays: fused optimizer steps and batch normalisation for NumPy and CuPy."""

from ravine import convert, data, functional, init, nn, schedules, trees
from ravine._core import __version__
from ravine.config import num_threads, set_num_threads, show_config
from ravine.gradient_check import GradientCheck, check_gradient
from ravine.norms import clip_by_global_norm_, global_norm
from ravine.optimizers import SGD, Adagrad, Adam, AdamW, Lion, Optimizer, RMSprop

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "GradientCheck",
    "Lion",
    "Optimizer",
    "RMSprop",
    "__version__",
    "check_gradient",
    "clip_by_global_norm_",
    "convert",
    "data",
    "functional",
    "global_norm",
    "init",
    "nn",
    "num_threads",
    "schedules",
    "set_num_threads",
    "show_config",
    "trees",
]
