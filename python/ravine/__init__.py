"""The optimizer for arrays: fused optimizer steps and batch normalisation for NumPy and CuPy."""

from ravine import convert, data, diagnose, functional, hessian, init, muon, nn, onebit, plot, schedules, trees
from ravine._core import __version__
from ravine.adafactor import Adafactor
from ravine.batch_norm import BatchNorm, BatchNormSaved, batch_norm, batch_norm_backward
from ravine.config import get_include, get_library, num_threads, set_num_threads, show_config
from ravine.gradient_check import GradientCheck, check_gradient
from ravine.history import Curve, History
from ravine.layer_norm import LayerNorm, LayerNormSaved, layer_norm, layer_norm_backward
from ravine.lr_range import LearningRateRange, lr_range_test
from ravine.minimize import minimize
from ravine.muon import Muon
from ravine.norms import clip_by_global_norm_, global_norm
from ravine.optimizers import (
    ADOPT,
    ASGD,
    MADGRAD,
    SGD,
    AdaBelief,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Adan,
    AdEMAMix,
    Lion,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
    Rprop,
    ScheduleFreeAdamW,
    ScheduleFreeSGD,
    SignSGD,
    Signum,
    Yogi,
)
from ravine.sparse import RowSparse
from ravine.trees import to_device, to_host

__all__ = [
    "ADOPT",
    "ASGD",
    "MADGRAD",
    "SGD",
    "AdEMAMix",
    "AdaBelief",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Adan",
    "BatchNorm",
    "BatchNormSaved",
    "Curve",
    "GradientCheck",
    "History",
    "LayerNorm",
    "LayerNormSaved",
    "LearningRateRange",
    "Lion",
    "Muon",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "RowSparse",
    "Rprop",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "SignSGD",
    "Signum",
    "Yogi",
    "__version__",
    "batch_norm",
    "batch_norm_backward",
    "check_gradient",
    "clip_by_global_norm_",
    "convert",
    "data",
    "diagnose",
    "functional",
    "get_include",
    "get_library",
    "global_norm",
    "hessian",
    "init",
    "layer_norm",
    "layer_norm_backward",
    "lr_range_test",
    "minimize",
    "muon",
    "nn",
    "num_threads",
    "onebit",
    "plot",
    "schedules",
    "set_num_threads",
    "show_config",
    "to_device",
    "to_host",
    "trees",
]
