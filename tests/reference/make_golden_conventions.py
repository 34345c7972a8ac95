"""Golden vectors of ``like=``: 20 steps of the optimizers of torch, Keras, optax, Chainer and MLX themselves.

    python tests/reference/make_golden_conventions.py torch keras optax mlx
    python-with-chainer tests/reference/make_golden_conventions.py chainer

Each system's part of ``tests/golden/conventions.npz`` is replaced, with the versions, and states in mid-run for
``rv.convert``; ravine is not needed. Made with torch (CPU), jax and optax (CPU),
Keras on jax, ``mlx[cpu]``; Chainer 7.8.1 in a second environment, with ``numpy<1.24``, ``setuptools<66``,
``protobuf<4`` and ``pip install --no-build-isolation``.

There is no Python without rounding here either: what is stored are the systems' own numbers.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

FILE = Path(__file__).parent.parent / "golden" / "conventions.npz"
STEPS, HALF = 20, 10
#: After which steps parameters are kept.
KEPT = (1, 2, 5, 10, 11, 20)
DTYPES = ("float64", "float32")

#: System, its name there, its arguments there, the class here, its arguments here besides ``like``. Neutral nowhere.
#: The rates are powers of two: MLX rounds them to float32 also where it computes in float64.
CASES = [
    # torch.optim; what ends in a call of clip_grad_norm_ has "clip".
    ("torch", "SGD", {"lr": 0.125}, "SGD", {"lr": 0.125}),
    (
        "torch",
        "SGD",
        {"lr": 0.125, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.07},
        "SGD",
        {"lr": 0.125, "momentum": 0.8, "dampening": 0.3, "l2": 0.07},
    ),
    (
        "torch",
        "SGD",
        {"lr": 0.0625, "momentum": 0.7, "nesterov": True, "weight_decay": 0.07},
        "SGD",
        {"lr": 0.0625, "momentum": 0.7, "nesterov": True, "l2": 0.07},
    ),
    (
        "torch",
        "SGD",
        {"lr": 0.125, "momentum": 0.8, "clip": 0.75},
        "SGD",
        {"lr": 0.125, "momentum": 0.8, "clip_norm": 0.75},
    ),
    (
        "torch",
        "Adagrad",
        {"lr": 0.25, "eps": 1e-4, "weight_decay": 0.07},
        "Adagrad",
        {"lr": 0.25, "eps": 1e-4, "l2": 0.07},
    ),
    (
        "torch",
        "Adagrad",
        {"lr": 0.25, "eps": 1e-6, "initial_accumulator_value": 0.3},
        "Adagrad",
        {"lr": 0.25, "eps": 1e-6, "initial": 0.3},
    ),
    (
        "torch",
        "RMSprop",
        {"lr": 0.0625, "alpha": 0.9, "eps": 1e-4},
        "RMSprop",
        {"lr": 0.0625, "decay": 0.9, "eps": 1e-4},
    ),
    (
        "torch",
        "RMSprop",
        {"lr": 0.0625, "alpha": 0.9, "eps": 1e-4, "momentum": 0.6, "weight_decay": 0.07},
        "RMSprop",
        {"lr": 0.0625, "decay": 0.9, "eps": 1e-4, "momentum": 0.6, "l2": 0.07},
    ),
    (
        "torch",
        "RMSprop",
        {"lr": 0.0625, "alpha": 0.9, "eps": 1e-4, "momentum": 0.6, "centered": True},
        "RMSprop",
        {"lr": 0.0625, "decay": 0.9, "eps": 1e-4, "momentum": 0.6, "centered": True},
    ),
    (
        "torch",
        "RMSprop",
        {"lr": 0.0625, "alpha": 0.8, "eps": 1e-3, "centered": True},
        "RMSprop",
        {"lr": 0.0625, "decay": 0.8, "eps": 1e-3, "centered": True},
    ),
    (
        "torch",
        "Adam",
        {"lr": 0.0625, "betas": (0.8, 0.97), "eps": 1e-4, "weight_decay": 0.07},
        "Adam",
        {"lr": 0.0625, "betas": (0.8, 0.97), "eps": 1e-4, "l2": 0.07},
    ),
    (
        "torch",
        "Adam",
        {"lr": 0.03125, "betas": (0.7, 0.99), "eps": 1e-6, "amsgrad": True, "maximize": True},
        "Adam",
        {"lr": 0.03125, "betas": (0.7, 0.99), "eps": 1e-6, "amsgrad": True, "maximize": True},
    ),
    (
        "torch",
        "AdamW",
        {"lr": 0.0625, "betas": (0.8, 0.97), "eps": 1e-4, "weight_decay": 0.2},
        "AdamW",
        {"lr": 0.0625, "betas": (0.8, 0.97), "eps": 1e-4, "weight_decay": 0.2},
    ),
    ("torch", "AdamW", {"lr": 0.0625, "amsgrad": True}, "AdamW", {"lr": 0.0625, "amsgrad": True}),
    (
        "torch",
        "Adadelta",
        {"lr": 0.5, "rho": 0.8, "eps": 1e-3, "weight_decay": 0.07},
        "Adadelta",
        {"lr": 0.5, "rho": 0.8, "eps": 1e-3, "l2": 0.07},
    ),
    (
        "torch",
        "Adamax",
        {"lr": 0.0625, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.07},
        "Adamax",
        {"lr": 0.0625, "betas": (0.8, 0.9), "eps": 1e-3, "l2": 0.07},
    ),
    (
        "torch",
        "NAdam",
        {"lr": 0.0625, "betas": (0.8, 0.97), "eps": 1e-4, "momentum_decay": 0.3, "weight_decay": 0.07},
        "NAdam",
        {"lr": 0.0625, "betas": (0.8, 0.97), "eps": 1e-4, "momentum_decay": 0.3, "l2": 0.07},
    ),
    (
        "torch",
        "NAdam",
        {"lr": 0.0625, "decoupled_weight_decay": True, "weight_decay": 0.2},
        "NAdam",
        {"lr": 0.0625, "weight_decay": 0.2},
    ),
    (
        "torch",
        "RAdam",
        {"lr": 0.0625, "betas": (0.8, 0.97), "eps": 1e-3},
        "RAdam",
        {"lr": 0.0625, "betas": (0.8, 0.97), "eps": 1e-3},
    ),
    (
        "torch",
        "RAdam",
        {"lr": 0.03125, "betas": (0.8, 0.8), "eps": 1e-3, "decoupled_weight_decay": True, "weight_decay": 0.2},
        "RAdam",
        {"lr": 0.03125, "betas": (0.8, 0.8), "eps": 1e-3, "weight_decay": 0.2},
    ),
    (
        "torch",
        "Rprop",
        {"lr": 0.0625, "etas": (0.4, 1.3), "step_sizes": (0.02, 0.2)},
        "Rprop",
        {"lr": 0.0625, "etas": (0.4, 1.3), "step_sizes": (0.02, 0.2)},
    ),
    (
        "torch",
        "ASGD",
        {"lr": 0.125, "lambd": 0.1, "alpha": 0.6, "t0": 4.0, "weight_decay": 0.07},
        "ASGD",
        {"lr": 0.125, "lambd": 0.1, "alpha": 0.6, "t0": 4.0, "l2": 0.07},
    ),
    # keras.optimizers
    ("keras", "SGD", {"learning_rate": 0.125}, "SGD", {"lr": 0.125}),
    (
        "keras",
        "SGD",
        {"learning_rate": 0.125, "momentum": 0.8, "weight_decay": 0.07},
        "SGD",
        {"lr": 0.125, "momentum": 0.8, "weight_decay": 0.07},
    ),
    (
        "keras",
        "SGD",
        {"learning_rate": 0.0625, "momentum": 0.7, "nesterov": True, "clipvalue": 0.5},
        "SGD",
        {"lr": 0.0625, "momentum": 0.7, "nesterov": True, "clip_value": 0.5},
    ),
    (
        "keras",
        "SGD",
        {"learning_rate": 0.125, "momentum": 0.8, "global_clipnorm": 0.75},
        "SGD",
        {"lr": 0.125, "momentum": 0.8, "clip_norm": 0.75},
    ),
    ("keras", "Adagrad", {"learning_rate": 0.25, "epsilon": 1e-4}, "Adagrad", {"lr": 0.25, "eps": 1e-4}),
    (
        "keras",
        "Adagrad",
        {"learning_rate": 0.25, "initial_accumulator_value": 0.3, "epsilon": 1e-3},
        "Adagrad",
        {"lr": 0.25, "initial": 0.3, "eps": 1e-3},
    ),
    (
        "keras",
        "RMSprop",
        {"learning_rate": 0.0625, "rho": 0.8, "epsilon": 1e-4},
        "RMSprop",
        {"lr": 0.0625, "decay": 0.8, "eps": 1e-4},
    ),
    (
        "keras",
        "RMSprop",
        {"learning_rate": 0.0625, "rho": 0.8, "epsilon": 1e-3, "momentum": 0.6, "weight_decay": 0.07},
        "RMSprop",
        {"lr": 0.0625, "decay": 0.8, "eps": 1e-3, "momentum": 0.6, "weight_decay": 0.07},
    ),
    (
        "keras",
        "RMSprop",
        {"learning_rate": 0.0625, "rho": 0.8, "epsilon": 1e-3, "momentum": 0.6, "centered": True},
        "RMSprop",
        {"lr": 0.0625, "decay": 0.8, "eps": 1e-3, "momentum": 0.6, "centered": True},
    ),
    (
        "keras",
        "Adam",
        {"learning_rate": 0.0625, "beta_1": 0.8, "beta_2": 0.97, "epsilon": 1e-4},
        "Adam",
        {"lr": 0.0625, "betas": (0.8, 0.97), "eps": 1e-4},
    ),
    (
        "keras",
        "Adam",
        {"learning_rate": 0.03125, "amsgrad": True, "weight_decay": 0.07, "epsilon": 1e-3, "beta_2": 0.9},
        "Adam",
        {"lr": 0.03125, "amsgrad": True, "weight_decay": 0.07, "eps": 1e-3, "betas": (0.9, 0.9)},
    ),
    ("keras", "AdamW", {"learning_rate": 0.0625, "weight_decay": 0.2}, "AdamW", {"lr": 0.0625, "weight_decay": 0.2}),
    ("keras", "AdamW", {}, "AdamW", {}),
    (
        "keras",
        "Adadelta",
        {"learning_rate": 0.5, "rho": 0.8, "epsilon": 1e-3},
        "Adadelta",
        {"lr": 0.5, "rho": 0.8, "eps": 1e-3},
    ),
    (
        "keras",
        "Adamax",
        {"learning_rate": 0.0625, "beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-3},
        "Adamax",
        {"lr": 0.0625, "betas": (0.8, 0.9), "eps": 1e-3},
    ),
    (
        "keras",
        "Nadam",
        {"learning_rate": 0.0625, "beta_1": 0.8, "beta_2": 0.97, "epsilon": 1e-4},
        "NAdam",
        {"lr": 0.0625, "betas": (0.8, 0.97), "eps": 1e-4},
    ),
    (
        "keras",
        "Lion",
        {"learning_rate": 0.03125, "beta_1": 0.8, "beta_2": 0.97, "weight_decay": 0.2},
        "Lion",
        {"lr": 0.03125, "betas": (0.8, 0.97), "weight_decay": 0.2},
    ),
    (
        "keras",
        "ScheduleFreeAdamW",
        {"learning_rate": 0.0625, "beta_1": 0.8, "beta_2": 0.97, "epsilon": 1e-3},
        "ScheduleFreeAdamW",
        {"lr": 0.0625, "betas": (0.8, 0.97), "eps": 1e-3},
    ),
    # optax; what begins with optax.clip_by_global_norm has "clip".
    ("optax", "sgd", {"learning_rate": 0.125}, "SGD", {"lr": 0.125}),
    ("optax", "sgd", {"learning_rate": 0.125, "momentum": 0.8}, "SGD", {"lr": 0.125, "momentum": 0.8}),
    (
        "optax",
        "sgd",
        {"learning_rate": 0.0625, "momentum": 0.7, "nesterov": True, "clip": 0.75},
        "SGD",
        {"lr": 0.0625, "momentum": 0.7, "nesterov": True, "clip_norm": 0.75},
    ),
    ("optax", "adagrad", {"learning_rate": 0.25}, "Adagrad", {"lr": 0.25}),
    (
        "optax",
        "adagrad",
        {"learning_rate": 0.25, "initial_accumulator_value": 0.3, "eps": 1e-3},
        "Adagrad",
        {"lr": 0.25, "initial": 0.3, "eps": 1e-3},
    ),
    ("optax", "rmsprop", {"learning_rate": 0.0625, "eps": 1e-4}, "RMSprop", {"lr": 0.0625, "eps": 1e-4}),
    (
        "optax",
        "rmsprop",
        {"learning_rate": 0.0625, "decay": 0.8, "eps": 1e-3, "momentum": 0.6, "centered": True},
        "RMSprop",
        {"lr": 0.0625, "decay": 0.8, "eps": 1e-3, "momentum": 0.6, "centered": True},
    ),
    (
        "optax",
        "rmsprop",
        {"learning_rate": 0.0625, "decay": 0.8, "eps": 1e-3, "momentum": 0.6, "eps_in_sqrt": False},
        "RMSprop",
        {"lr": 0.0625, "decay": 0.8, "eps": 1e-3, "momentum": 0.6, "eps_inside": False},
    ),
    (
        "optax",
        "adam",
        {"learning_rate": 0.0625, "b1": 0.8, "b2": 0.97, "eps": 1e-4},
        "Adam",
        {"lr": 0.0625, "betas": (0.8, 0.97), "eps": 1e-4},
    ),
    (
        "optax",
        "adam",
        {"learning_rate": 0.0625, "b1": 0.8, "b2": 0.97, "eps": 0.0, "eps_root": 1e-3},
        "Adam",
        {"lr": 0.0625, "betas": (0.8, 0.97), "eps": 1e-3, "eps_inside": True},
    ),
    (
        "optax",
        "amsgrad",
        {"learning_rate": 0.03125, "b1": 0.7, "b2": 0.9, "eps": 1e-4},
        "Adam",
        {"lr": 0.03125, "betas": (0.7, 0.9), "eps": 1e-4, "amsgrad": True},
    ),
    ("optax", "adamw", {"learning_rate": 0.0625}, "AdamW", {"lr": 0.0625}),
    (
        "optax",
        "adamw",
        {"learning_rate": 0.0625, "b1": 0.8, "b2": 0.97, "eps": 1e-4, "weight_decay": 0.2},
        "AdamW",
        {"lr": 0.0625, "betas": (0.8, 0.97), "eps": 1e-4, "weight_decay": 0.2},
    ),
    (
        "optax",
        "adadelta",
        {"learning_rate": 0.5, "rho": 0.8, "eps": 1e-3, "weight_decay": 0.07},
        "Adadelta",
        {"lr": 0.5, "rho": 0.8, "eps": 1e-3, "l2": 0.07},
    ),
    (
        "optax",
        "adamax",
        {"learning_rate": 0.0625, "b1": 0.8, "b2": 0.9, "eps": 1e-3},
        "Adamax",
        {"lr": 0.0625, "betas": (0.8, 0.9), "eps": 1e-3},
    ),
    (
        "optax",
        "nadam",
        {"learning_rate": 0.0625, "b1": 0.8, "b2": 0.97, "eps": 1e-4},
        "NAdam",
        {"lr": 0.0625, "betas": (0.8, 0.97), "eps": 1e-4},
    ),
    (
        "optax",
        "radam",
        {"learning_rate": 0.0625, "b1": 0.8, "b2": 0.97, "eps": 1e-3},
        "RAdam",
        {"lr": 0.0625, "betas": (0.8, 0.97), "eps": 1e-3},
    ),
    (
        "optax",
        "radam",
        {"learning_rate": 0.0625, "b1": 0.8, "b2": 0.9, "eps": 1e-3, "threshold": 4.0},
        "RAdam",
        {"lr": 0.0625, "betas": (0.8, 0.9), "eps": 1e-3, "threshold": 4},
    ),
    (
        "optax",
        "lion",
        {"learning_rate": 0.03125, "b1": 0.8, "b2": 0.97, "weight_decay": 0.2},
        "Lion",
        {"lr": 0.03125, "betas": (0.8, 0.97), "weight_decay": 0.2},
    ),
    ("optax", "sign_sgd", {"learning_rate": 0.03125}, "SignSGD", {"lr": 0.03125}),
    ("optax", "signum", {"learning_rate": 0.03125, "beta": 0.8}, "Signum", {"lr": 0.03125, "momentum": 0.8}),
    (
        "optax",
        "adabelief",
        {"learning_rate": 0.0625, "b1": 0.8, "b2": 0.97, "eps": 1e-3, "eps_root": 1e-4},
        "AdaBelief",
        {"lr": 0.0625, "betas": (0.8, 0.97), "eps": 1e-3, "eps_root": 1e-4},
    ),
    ("optax", "yogi", {"learning_rate": 0.0625}, "Yogi", {"lr": 0.0625}),
    (
        "optax",
        "yogi",
        {"learning_rate": 0.0625, "b1": 0.8, "b2": 0.9, "eps": 1e-2},
        "Yogi",
        {"lr": 0.0625, "betas": (0.8, 0.9), "eps": 1e-2},
    ),
    ("optax", "adan", {"learning_rate": 0.0625}, "Adan", {"lr": 0.0625}),
    (
        "optax",
        "adan",
        {"learning_rate": 0.0625, "b1": 0.8, "b2": 0.7, "b3": 0.97, "eps": 1e-3, "eps_root": 1e-4, "weight_decay": 0.2},
        "Adan",
        {"lr": 0.0625, "betas": (0.8, 0.7, 0.97), "eps": 1e-3, "eps_root": 1e-4, "weight_decay": 0.2},
    ),
    (
        "optax",
        "contrib.ademamix",
        {"learning_rate": 0.03125, "b1": 0.8, "b2": 0.97, "b3": 0.9, "alpha": 3.0, "eps": 1e-4, "weight_decay": 0.2},
        "AdEMAMix",
        {"lr": 0.03125, "betas": (0.8, 0.97, 0.9), "alpha": 3.0, "eps": 1e-4, "weight_decay": 0.2},
    ),
    (
        "optax",
        "contrib.adopt",
        {"learning_rate": 0.0625, "b1": 0.8, "b2": 0.97, "eps": 1e-3},
        "ADOPT",
        {"lr": 0.0625, "betas": (0.8, 0.97), "eps": 1e-3},
    ),
    (
        "optax",
        "contrib.schedule_free_sgd",
        {"learning_rate": 0.125, "b1": 0.8, "weight_decay": 0.07},
        "ScheduleFreeSGD",
        {"lr": 0.125, "momentum": 0.8, "weight_decay": 0.07},
    ),
    (
        "optax",
        "contrib.schedule_free_adamw",
        {"learning_rate": 0.0625, "b1": 0.8, "b2": 0.97, "eps": 1e-3, "weight_decay": 0.2},
        "ScheduleFreeAdamW",
        {"lr": 0.0625, "betas": (0.8, 0.97), "eps": 1e-3, "weight_decay": 0.2},
    ),
    # chainer.optimizers; what has the hook WeightDecay or GradientClipping has "decay" or "clip".
    ("chainer", "SGD", {"lr": 0.125, "decay": 0.07}, "SGD", {"lr": 0.125, "l2": 0.07}),
    ("chainer", "MomentumSGD", {"lr": 0.125, "momentum": 0.8}, "SGD", {"lr": 0.125, "momentum": 0.8}),
    (
        "chainer",
        "MomentumSGD",
        {"lr": 0.125, "momentum": 0.8, "clip": 0.75},
        "SGD",
        {"lr": 0.125, "momentum": 0.8, "clip_norm": 0.75},
    ),
    (
        "chainer",
        "CorrectedMomentumSGD",
        {"lr": 0.125, "momentum": 0.8},
        "SGD",
        {"lr": 0.125, "momentum": 0.8, "form": "accumulate"},
    ),
    (
        "chainer",
        "NesterovAG",
        {"lr": 0.0625, "momentum": 0.7},
        "SGD",
        {"lr": 0.0625, "momentum": 0.7, "nesterov": True},
    ),
    ("chainer", "AdaGrad", {"lr": 0.25, "eps": 1e-4}, "Adagrad", {"lr": 0.25, "eps": 1e-4}),
    (
        "chainer",
        "RMSprop",
        {"lr": 0.0625, "alpha": 0.8, "eps": 1e-4},
        "RMSprop",
        {"lr": 0.0625, "decay": 0.8, "eps": 1e-4},
    ),
    (
        "chainer",
        "RMSprop",
        {"lr": 0.0625, "alpha": 0.8, "eps": 1e-4, "eps_inside_sqrt": True},
        "RMSprop",
        {"lr": 0.0625, "decay": 0.8, "eps": 1e-4, "eps_inside": True},
    ),
    (
        "chainer",
        "RMSpropGraves",
        {"lr": 0.0625, "alpha": 0.8, "momentum": 0.6, "eps": 1e-3},
        "RMSprop",
        {"lr": 0.0625, "decay": 0.8, "momentum": 0.6, "eps": 1e-3, "centered": True},
    ),
    ("chainer", "RMSpropGraves", {}, "RMSprop", {"centered": True}),
    ("chainer", "AdaDelta", {"rho": 0.8, "eps": 1e-3}, "Adadelta", {"rho": 0.8, "eps": 1e-3}),
    (
        "chainer",
        "Adam",
        {"alpha": 0.0625, "beta1": 0.8, "beta2": 0.97, "eps": 1e-4},
        "Adam",
        {"lr": 0.0625, "betas": (0.8, 0.97), "eps": 1e-4},
    ),
    (
        "chainer",
        "Adam",
        {"alpha": 0.03125, "beta1": 0.7, "beta2": 0.9, "eps": 1e-3, "amsgrad": True, "weight_decay_rate": 0.02},
        "AdamW",
        {"lr": 0.03125, "betas": (0.7, 0.9), "eps": 1e-3, "amsgrad": True, "weight_decay": 0.02},
    ),
    # mlx.optimizers; with optim.clip_grad_norm, "clip".
    ("mlx", "SGD", {"learning_rate": 0.125, "weight_decay": 0.07}, "SGD", {"lr": 0.125, "l2": 0.07}),
    (
        "mlx",
        "SGD",
        {"learning_rate": 0.125, "momentum": 0.8, "dampening": 0.3},
        "SGD",
        {"lr": 0.125, "momentum": 0.8, "dampening": 0.3},
    ),
    (
        "mlx",
        "SGD",
        {"learning_rate": 0.0625, "momentum": 0.7, "nesterov": True, "clip": 0.75},
        "SGD",
        {"lr": 0.0625, "momentum": 0.7, "nesterov": True, "clip_norm": 0.75},
    ),
    ("mlx", "Adagrad", {"learning_rate": 0.25, "eps": 1e-4}, "Adagrad", {"lr": 0.25, "eps": 1e-4}),
    (
        "mlx",
        "RMSprop",
        {"learning_rate": 0.0625, "alpha": 0.8, "eps": 1e-4},
        "RMSprop",
        {"lr": 0.0625, "decay": 0.8, "eps": 1e-4},
    ),
    (
        "mlx",
        "Adam",
        {"learning_rate": 0.0625, "betas": [0.8, 0.97], "eps": 1e-4},
        "Adam",
        {"lr": 0.0625, "betas": (0.8, 0.97), "eps": 1e-4},
    ),
    (
        "mlx",
        "Adam",
        {"learning_rate": 0.0625, "betas": [0.8, 0.97], "eps": 1e-4, "bias_correction": True},
        "Adam",
        {"lr": 0.0625, "betas": (0.8, 0.97), "eps": 1e-4, "bias_correction": True},
    ),
    ("mlx", "AdamW", {"learning_rate": 0.03125, "weight_decay": 0.25}, "AdamW", {"lr": 0.03125, "weight_decay": 0.25}),
    (
        "mlx",
        "AdaDelta",
        {"learning_rate": 0.5, "rho": 0.8, "eps": 1e-3},
        "Adadelta",
        {"lr": 0.5, "rho": 0.8, "eps": 1e-3},
    ),
    (
        "mlx",
        "Adamax",
        {"learning_rate": 0.0625, "betas": [0.8, 0.9], "eps": 1e-3},
        "Adamax",
        {"lr": 0.0625, "betas": (0.8, 0.9), "eps": 1e-3},
    ),
    (
        "mlx",
        "Lion",
        {"learning_rate": 0.03125, "betas": [0.8, 0.97], "weight_decay": 0.25},
        "Lion",
        {"lr": 0.03125, "betas": (0.8, 0.97), "weight_decay": 0.25},
    ),
]

#: The same with nothing given but what must be: the defaults. Those of optax and MLX have none for the rate.
_RATE = {"learning_rate": 0.0625}, {"lr": 0.0625}
DEFAULTS = [
    *(
        ("torch", name, {}, name, {})
        for name in [
            "SGD",
            "Adagrad",
            "RMSprop",
            "Adam",
            "AdamW",
            "Adadelta",
            "Adamax",
            "NAdam",
            "RAdam",
            "Rprop",
            "ASGD",
        ]
    ),
    ("torch", "Adam", {"amsgrad": True}, "Adam", {"amsgrad": True}),
    *(
        ("keras", name, {}, name, {})
        for name in ["SGD", "Adagrad", "RMSprop", "Adam", "Adadelta", "Adamax", "Lion", "ScheduleFreeAdamW"]
    ),
    ("keras", "Nadam", {}, "NAdam", {}),
    *(
        ("optax", there, _RATE[0], name, _RATE[1])
        for there, name in {
            "rmsprop": "RMSprop",
            "adam": "Adam",
            "adadelta": "Adadelta",
            "adamax": "Adamax",
            "nadam": "NAdam",
            "radam": "RAdam",
            "lion": "Lion",
            "signum": "Signum",
            "adabelief": "AdaBelief",
            "contrib.ademamix": "AdEMAMix",
            "contrib.adopt": "ADOPT",
        }.items()
    ),
    ("optax", "amsgrad", _RATE[0], "Adam", _RATE[1] | {"amsgrad": True}),
    ("optax", "contrib.schedule_free_sgd", {}, "ScheduleFreeSGD", {}),
    ("optax", "contrib.schedule_free_adamw", {}, "ScheduleFreeAdamW", {}),
    ("chainer", "SGD", {}, "SGD", {}),
    ("chainer", "CorrectedMomentumSGD", {}, "SGD", {"form": "accumulate"}),
    ("chainer", "NesterovAG", {}, "SGD", {"nesterov": True}),
    ("chainer", "AdaGrad", {}, "Adagrad", {}),
    ("chainer", "RMSprop", {}, "RMSprop", {}),
    ("chainer", "AdaDelta", {}, "Adadelta", {}),
    ("chainer", "Adam", {}, "Adam", {}),
    ("chainer", "Adam", {}, "AdamW", {}),
    *(
        ("mlx", there, _RATE[0], name, _RATE[1])
        for there, name in {
            "Adagrad": "Adagrad",
            "RMSprop": "RMSprop",
            "Adam": "Adam",
            "AdamW": "AdamW",
            "AdaDelta": "Adadelta",
            "Adamax": "Adamax",
            "Lion": "Lion",
        }.items()
    ),
]
CASES += DEFAULTS


def keys():
    """Name the cases: system, name there, and the how-manieth of that."""
    seen = {}
    for system, name, *_ in CASES:
        seen[system, name] = seen.get((system, name), -1) + 1
        yield f"{system}.{name}.{seen[system, name]}"


def problem():
    """Make a start and gradients, of sizes at which ε counts and does not; float32 holds all of it."""
    rng = np.random.default_rng(20)
    sizes = np.array([1e-5, 1e-3, 0.1, 1.0, 1.0, 3.0, 30.0, 0.01])
    w = rng.standard_normal(8).astype(np.float32).astype(np.float64)
    gradients = (rng.standard_normal((STEPS, 8)) * sizes).astype(np.float32).astype(np.float64)
    gradients[0, 3] = 0.0
    gradients[5, 4] = 0.0
    return w, gradients


# One function for each system: parameters after each step, and states by their names there after HALF.


#: What is constant there, or was taken before the first step: the rate of all others is halved after HALF steps, since
#: under a constant one γ inside the buffer and outside of it are the same.
CONSTANT = {
    "ASGD",
    "Rprop",
    "AdaDelta",
    "ScheduleFreeAdamW",
    "contrib.schedule_free_sgd",
    "contrib.schedule_free_adamw",
}


def halved(name, given):
    """Give the rate of the second half, and the name of its argument; None for those that keep theirs."""
    rate = {"lr", "learning_rate"} & given.keys() or {"alpha"} & given.keys() & ({"alpha"} if name == "Adam" else set())
    return (given[min(rate)] / 2, min(rate)) if rate and name not in CONSTANT else (None, None)


def run_torch(name, given, w, gradients):
    import torch

    # It keeps numbers such as NAdam's product of momenta in its default dtype, else float32 also beside float64.
    torch.set_default_dtype(getattr(torch, str(w.dtype)))
    given = dict(given)
    clip = given.pop("clip", None)
    later, _ = halved(name, given)
    p = torch.tensor(w, requires_grad=True)
    optimizer = getattr(torch.optim, name)([p], **given)
    path, states = [], {}
    for t, g in enumerate(gradients, 1):
        p.grad = torch.tensor(g)
        if t == HALF + 1 and later is not None:
            optimizer.param_groups[0]["lr"] = later
        if clip is not None:
            torch.nn.utils.clip_grad_norm_([p], clip)
        optimizer.step()
        path.append(p.detach().numpy().copy())
        if t == HALF:
            found = {k: v for k, v in optimizer.state[p].items() if v is not None}
            states = {k: np.array(v.detach().numpy() if hasattr(v, "detach") else v) for k, v in found.items()}
            group = {k: v for k, v in optimizer.param_groups[0].items() if k != "params" and v is not None}
    return path, states, group


def run_keras(name, given, w, gradients):
    import keras

    keras.config.set_floatx(str(w.dtype))
    p = keras.Variable(w, dtype=str(w.dtype))
    optimizer = getattr(keras.optimizers, name)(**given)
    path, (later, _) = [], halved(name, given)
    for t, g in enumerate(gradients, 1):
        if t == HALF + 1 and later is not None:
            optimizer.learning_rate = later
        optimizer.apply([keras.ops.convert_to_tensor(g)], [p])
        path.append(np.array(p.value))
    return path, {}, None


def run_optax(name, given, w, gradients):
    import jax.numpy as jnp
    import optax

    given = dict(given)
    clip = given.pop("clip", None)
    make = optax
    for part in name.split("."):
        make = getattr(make, part)
    later, rate = halved(name, given)
    if later is not None:
        given[rate] = lambda count: jnp.where(count < HALF, 2 * later, later)
    rule = make(**given)
    if clip is not None:
        rule = optax.chain(optax.clip_by_global_norm(clip), rule)
    p = jnp.asarray(w)
    state = rule.init(p)
    path, states = [], {}
    for t, g in enumerate(gradients, 1):
        update, state = rule.update(jnp.asarray(g), state, p)
        p = optax.apply_updates(p, update)
        path.append(np.array(p))
        if t == HALF:
            structure = described(state, "", states)
    return path, states, structure


def described(state, at, leaves):
    """Describe a state's named tuples and tuples; put its arrays into ``leaves``, by their paths."""
    if hasattr(state, "_fields"):
        fields = {name: described(getattr(state, name), f"{at}.{name}", leaves) for name in state._fields}
        return {"type": type(state).__name__, "fields": fields}
    if isinstance(state, tuple):
        return [described(item, f"{at}.{i}", leaves) for i, item in enumerate(state)]
    leaves[at[1:]] = np.array(state)
    return at[1:]


def run_mlx(name, given, w, gradients):
    import mlx.core as mx
    import mlx.optimizers as optim

    mx.set_default_device(mx.cpu)
    given = dict(given)
    clip = given.pop("clip", None)
    optimizer = getattr(optim, name)(**given)

    def array(x):
        return mx.array(x, dtype=getattr(mx, str(x.dtype)))

    p = {"w": array(w)}
    path, (later, _) = [], halved(name, given)
    for t, g in enumerate(gradients, 1):
        if t == HALF + 1 and later is not None:
            optimizer.learning_rate = later
        grads = {"w": array(g)}
        if clip is not None:
            grads, _ = optim.clip_grad_norm(grads, clip)
        p = optimizer.apply_gradients(grads, p)
        mx.eval(p)
        path.append(np.array(p["w"]))
    return path, {}, None


def run_chainer(name, given, w, gradients):
    import chainer

    given = dict(given)
    clip, decay = given.pop("clip", None), given.pop("decay", None)
    link = chainer.Link()
    with link.init_scope():
        link.w = chainer.Parameter(w.copy())
    optimizer = getattr(chainer.optimizers, name)(**given)
    optimizer.setup(link)
    if decay is not None:
        optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(decay))
    if clip is not None:
        optimizer.add_hook(chainer.optimizer_hooks.GradientClipping(clip))
    path, (later, rate) = [], halved(name, given)
    for t, g in enumerate(gradients, 1):
        if t == HALF + 1 and later is not None:
            setattr(optimizer, rate, later)
        link.w.grad = g.copy()
        optimizer.update()
        path.append(link.w.array.copy())
    return path, {}, None


RUNS = {"torch": run_torch, "keras": run_keras, "optax": run_optax, "mlx": run_mlx, "chainer": run_chainer}


def prepare(system):
    """Set what must be set before the import; give the versions."""
    versions = {"numpy": np.__version__, "python": sys.version.split()[0]}
    if system in ("keras", "optax"):
        os.environ.update(KERAS_BACKEND="jax", JAX_ENABLE_X64="1", JAX_PLATFORMS="cpu")
        import jax

        versions["jax"] = jax.__version__
    if system == "mlx":
        import importlib.metadata

        return versions | {"mlx": importlib.metadata.version("mlx")}
    return versions | {system: __import__(system).__version__}


def main():
    with np.load(FILE) if FILE.exists() else open(os.devnull) as file:
        kept = {key: file[key] for key in file.files} if hasattr(file, "files") else {}
    meta = json.loads(str(kept["meta"])) if kept else {"versions": {}, "about": {}}
    w, gradients = problem()
    kept |= {"w": w, "gradients": gradients.astype(np.float32)}
    for system in sys.argv[1:]:
        kept = {key: value for key, value in kept.items() if not key.startswith(f"{system}.")}
        meta["versions"][system] = prepare(system)
        for key, case in zip(keys(), CASES, strict=True):
            of, name, given, *_ = case
            if of != system:
                continue
            for dtype in DTYPES:
                path, states, about = RUNS[system](name, given, w.astype(dtype), list(gradients.astype(dtype)))
                assert all(x.dtype == dtype for x in path), (key, dtype)
                kept[f"{key}/{dtype}"] = np.array([path[t - 1] for t in KEPT])
                if case not in DEFAULTS and about:
                    meta["about"][key] = about
                    kept |= {f"{key}/{dtype}/{state}": value for state, value in states.items()}
            print(key, meta["versions"][system])
    kept["meta"] = np.array(json.dumps(meta, sort_keys=True))
    np.savez_compressed(FILE, **dict(sorted(kept.items())))
    print(FILE, FILE.stat().st_size)


if __name__ == "__main__":
    main()
