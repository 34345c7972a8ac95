"""The optimizers as torch.optim's: same arguments, groups, state and checkpoints, over the kernels of this package.

A class here takes the place of torch.optim's of the same name, for tensors on the CPU and (with CuPy) on NVIDIA GPUs:
closures, schedulers, ``torch.amp.GradScaler``, hooks, ``add_param_group`` and state_dicts work as there, and either
loads the other's state_dict. All parameters with one rule on one device are updated in one pass on several threads, or
one launch. Transposed, strided and channels-last parameters are right, and give the bits of contiguous ones. Complex
parameters are pairs of real numbers, as in torch.

What differs: a denominator of 0 makes an update of 0, not NaN. The states of float16 and bfloat16 parameters are
float32. Parameters that share memory, or of which two elements do (``expand``), raise. ``foreach``, ``capturable`` and
``differentiable`` may be None or False; True raises. ``fused`` may be True, for every step here is fused. ``SGD``,
``Adagrad`` and ``SparseAdam`` take sparse gradients. ``Muon`` multiplies matrices in the parameters' precision, where
torch rounds them to bfloat16. ``LBFGS`` is missing: `ravine.minimize` has it.

>>> model = torch.nn.Linear(3, 1)
>>> optimizer = ravine.torch.AdamW(model.parameters(), lr=1e-2)
>>> model(torch.ones(2, 3)).square().mean().backward()
>>> optimizer.step()
"""

from typing import Any

from ravine.torch.adam import Adam, Adamax, AdamW, NAdam, RAdam, SparseAdam
from ravine.torch.classes import ASGD, SGD, Adadelta, Adagrad, Lion, RMSprop, Rprop
from ravine.torch.matrix import Adafactor, Muon

__all__ = [
    "ASGD",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "Muon",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SparseAdam",
]


def __getattr__(name: str) -> Any:
    if name == "LBFGS":
        raise AttributeError("ravine.torch has no LBFGS: call rv.minimize(loss_and_grad, params, method='lbfgs')")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {__all__}")
