"""Adafactor and Muon in float64, written from the papers.

Shazeer and Stern, "Adafactor", 2018, Algorithms 4 (matrices) and 5 (vectors), with section 9's hyperparameters.
Jordan, "Muon", 2024, and Liu et al., "Muon is Scalable for LLM Training", 2025. The iteration is not followed on the
matrix, but on its singular values: that is what an odd polynomial of a matrix means.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["adafactor", "muon", "orthogonalized", "relative_step", "rms"]


def rms(x: Any) -> float:
    """The root of the mean square."""
    return math.sqrt(float(np.mean(np.square(x))))


def relative_step(t: int) -> float:
    """ρ_t of section 9."""
    return min(1e-2, 1 / math.sqrt(t))


def adafactor(
    w: Any,
    g: Any,
    states: dict[str, Any],
    t: int,
    rho: float,
    *,
    decay: float = 0.8,
    eps: tuple[float, float] = (1e-30, 1e-3),
    d: float = 1.0,
    scale_parameter: bool = True,
    weight_decay: float = 0.0,
) -> Any:
    """Algorithm 4 or 5; states R and C, or V, start empty and change in place."""
    beta = 1 - t**-decay
    square = g**2 + eps[0]
    if w.ndim < 2:
        states["v"] = beta * states.get("v", 0.0) + (1 - beta) * square
        v = states["v"]
    else:
        n, m = square.shape[-2:]
        states["r"] = beta * states.get("r", 0.0) + (1 - beta) * (square @ np.ones(m))
        states["c"] = beta * states.get("c", 0.0) + (1 - beta) * (np.ones(n) @ square)
        total = states["r"] @ np.ones(n)
        v = states["r"][..., :, None] * states["c"][..., None, :] / total[..., None, None]
    u = g / np.sqrt(v)
    u = u / max(1.0, rms(u) / d)
    alpha = max(eps[1], rms(w)) * rho if scale_parameter else rho
    return (1 - rho * weight_decay) * w - alpha * u


def orthogonalized(x: Any, coefficients: tuple[float, float, float], steps: int, eps: float = 1e-7) -> Any:
    """U f(Σ) Vᵀ, where f is the polynomial, again and again."""
    a, b, c = coefficients
    u, sigma, vt = np.linalg.svd(x, full_matrices=False)
    sigma = sigma / max(np.linalg.norm(x), eps)
    for _ in range(steps):
        sigma = a * sigma + b * sigma**3 + c * sigma**5
    return u @ (sigma[:, None] * vt)


def muon(
    w: Any,
    g: Any,
    buffer: Any,
    lr: float,
    *,
    momentum: float,
    nesterov: bool,
    coefficients: tuple[float, float, float],
    steps: int,
    match_rms: bool,
    weight_decay: float,
) -> tuple[Any, Any]:
    """One step; returns w and the buffer."""
    buffer = momentum * buffer + g
    o = orthogonalized(g + momentum * buffer if nesterov else buffer, coefficients, steps)
    rows, columns = w.shape
    scale = 0.2 * math.sqrt(max(rows, columns)) if match_rms else math.sqrt(max(1.0, rows / columns))
    return (1 - lr * weight_decay) * w - lr * scale * o, buffer
