"""Directions of descent from gradients: L-BFGS, and Newton's by conjugate gradients."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from ravine.bounds import Box
from ravine.line_search import Place, ldexp, normalized, scaled
from ravine.objective import Array, Objective
from ravine.trees import to_host

__all__ = ["LBFGS", "Model", "NewtonCG", "Pair", "Product", "steepest"]

Product: TypeAlias = Callable[[Array, Array], Array]
State: TypeAlias = dict[str, Any]
Host: TypeAlias = np.ndarray[Any, Any]

#: How many bounds of the Cauchy point are taken at a time: the minimum is mostly met early.
_BREAKPOINTS = 4096
#: The least share of θ that a curvature has, as rounding may leave 0.
_FLAT = 2.0**-52


class Model(Protocol):
    """What chooses the next direction, and learns from where it led."""

    curved: bool

    def direction(self, place: Place) -> Array:
        """Return a direction of descent, of such a length that a step of 1 is the first to try; if not, it is reset."""
        ...

    def learn(self, before: Place, after: Place) -> None:
        """Take note of a step."""
        ...

    def reset(self) -> None:
        """Forget what was learnt: the direction led to no lower loss."""
        ...

    def freeze(self) -> Callable[[], State]:
        """Return what gives, later, what the next directions depend on as it is now: numbers and NumPy arrays."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `freeze` gave."""
        ...

    def negative_curvature(self, place: Place) -> tuple[Array, float] | None:
        """Return a direction d and dᵀHd < 0, if it looks for one and finds it, where the gradient is small."""
        ...


def steepest(place: Place, box: Box | None = None) -> Array:
    """Return −g/‖g‖, as the scale of the loss says nothing about that of the parameters; bounds on both sides do."""
    gradient = place.gradient if box is None else place.gradient * ~box.held(place.x, place.gradient)
    g, _ = normalized(gradient)
    length = 1.0 if box is None else box.diameter(g != 0)
    d = g * (-length / (math.sqrt(float(g @ g)) or 1.0))
    return d if box is None else box.clip(place.x + d) - place.x


@dataclass(frozen=True)
class Pair:
    """A step s = 2ᵃ·s′ and the change of the gradient along it, y = 2ᵇ·y′: no product of s′ and y′ overflows."""

    s: Array
    y: Array
    exponents: tuple[int, int]


class LBFGS:
    """Limited-memory BFGS: Nocedal and Wright, "Numerical Optimization", 2nd ed., 2006, Algorithms 7.4 and 7.5.

    Under bounds it is L-BFGS-B: Byrd, Lu, Nocedal and Zhu, "A Limited Memory Algorithm for Bound Constrained
    Optimization", 1995, with the projection of Morales and Nocedal, 2011.
    """

    def __init__(self, objective: Objective, memory: int, box: Box | None = None) -> None:
        self._objective, self._box, self.curved = objective, box, False
        self.pairs: deque[Pair] = deque(maxlen=memory)

    def direction(self, place: Place) -> Array:
        """Return −Hg, H the inverse Hessian's estimate, by the two-loop recursion."""
        if self._box is None:
            return -_two_loops(self.pairs, place.gradient) if self.pairs else steepest(place)
        if not self.pairs:
            return steepest(place, self._box)
        g, exponent = normalized(place.gradient)
        unit = self.pairs[-1].exponents[0] - self.pairs[-1].exponents[1]
        # The small matrices are NumPy's: on a GPU each of their operations would wait for the last.
        low, high = (to_host(scaled(end - place.x, -exponent - unit)) for end in (self._box.low, self._box.high))
        step = _bounded_step(self.pairs, to_host(g), low, high)
        if step is None:
            return steepest(place, self._box)
        return self._box.clip(place.x + scaled(self._objective.put(step), exponent + unit)) - place.x

    def learn(self, before: Place, after: Place) -> None:
        """Keep s and y, if yᵀs is above what rounding the two gradients can make of it, u·‖s‖(‖g‖ + ‖g⁺‖)."""
        s, a = normalized(after.x - before.x)
        # Halves, as the difference of two finite numbers may not be finite.
        y, b = normalized(0.5 * after.gradient - 0.5 * before.gradient)
        rounding = sum(_scaled_norm(place.gradient, b + 1) for place in (before, after))
        if float(s @ y) > self._objective.roundoff * _norm(s) * rounding:
            self.pairs.append(Pair(s, y, (a, b + 1)))

    def reset(self) -> None:
        """Forget all pairs."""
        self.pairs.clear()

    def freeze(self) -> Callable[[], State]:
        """Keep the pairs as they are; arrays of none may have no place in a file."""
        pairs = tuple(self.pairs)

        def state() -> State:
            if not pairs:
                return {}
            return {
                "s": np.stack([to_host(p.s) for p in pairs]),
                "y": np.stack([to_host(p.y) for p in pairs]),
                "exponents": np.array([p.exponents for p in pairs], np.int64),
            }

        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the pairs, the last ones if memory is shorter than theirs was."""
        put = self._objective.put
        self.pairs.clear()
        if state:
            for s, y, (a, b) in zip(state["s"], state["y"], np.asarray(state["exponents"]).tolist(), strict=True):
                self.pairs.append(Pair(put(np.array(s)), put(np.array(y)), (int(a), int(b))))

    def negative_curvature(self, place: Place) -> None:
        """Return None: L-BFGS's estimate has none."""


def _two_loops(pairs: Sequence[Pair], gradient: Array) -> Array:
    """Return Hg. In units of 2^(a−b) of the last pair and of 2ᵉ of g, s and y are the s′ and y′."""
    q, e = normalized(gradient)
    q, alphas = q.copy(), []
    for p in reversed(pairs):
        alphas.append(float(p.s @ q) / float(p.s @ p.y))
        q -= alphas[-1] * p.y
    last = pairs[-1]
    q *= float(last.s @ last.y) / float(last.y @ last.y)
    unit = last.exponents[0] - last.exponents[1]
    for p, alpha in zip(pairs, reversed(alphas), strict=True):
        share = ldexp(1.0, p.exponents[0] - p.exponents[1] - unit)
        q += (share * alpha - float(p.y @ q) / float(p.s @ p.y)) * p.s
    return scaled(q, e + unit)


def _bounded_step(pairs: Sequence[Pair], g: Host, low: Host, high: Host) -> Host | None:
    """Return a step to the least of gᵀz + ½zᵀBz within the bounds, or None if rounding has made B singular.

    Along the projected gradient first, to the Cauchy point, which says which bounds hold; then among the others.
    B = θI − WM⁻¹Wᵀ in units of 2^(b−a) of the last pair.
    """
    last = pairs[-1].exponents[1] - pairs[-1].exponents[0]
    s = np.stack([to_host(p.s) for p in pairs])
    y = np.stack([scaled(to_host(p.y), p.exponents[1] - p.exponents[0] - last) for p in pairs])
    sy = s @ y.T
    theta = float(y[-1] @ y[-1]) / float(sy[-1, -1])
    W = np.concatenate([y, theta * s]).T
    below = np.tril(sy, -1)
    M = np.block([[-np.diag(np.diag(sy)), below.T], [below, theta * (s @ s.T)]])
    try:
        z, c = _cauchy_point(g, low, high, theta, W, M)
        free = (low < z) & (z < high)
        r = (g + theta * z - W @ np.linalg.solve(M, c))[free]
        inner = W[free]
        d = -r / theta - inner @ np.linalg.solve(M - inner.T @ inner / theta, inner.T @ r) / theta**2
    except np.linalg.LinAlgError:
        return None
    if not np.isfinite(d).all():
        return None
    full = z.copy()
    full[free] = np.clip(z[free] + d, low[free], high[free])
    if full @ g >= 0 and d.size:
        with np.errstate(divide="ignore", invalid="ignore"):
            room = np.where(d > 0, high[free] - z[free], low[free] - z[free]) / d
        full = z.copy()
        full[free] += min(1.0, float(np.where(d == 0, math.inf, room).min())) * d
    return full if full @ g < 0 else None


def _cauchy_point(g: Host, low: Host, high: Host, theta: float, W: Host, M: Host) -> tuple[Host, Host]:
    """Return the first minimum of the model along the projected gradient, and Wᵀ times it.

    Between two bounds that are met, at t in [t_k, t_k+1], the slope is −S + θtS − pᵀM⁻¹c, with S the sum of the squares
    of what still moves, p = −Wᵀ of it and c = Wᵀz: all of them are running sums, taken some bounds at a time.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        times = np.where(g < 0, high, low) / -g
    times = np.where(g == 0, math.inf, np.maximum(times, 0.0))
    moving = times > 0
    order = np.argsort(times, kind="stable")
    order = order[np.isfinite(times[order]) & moving[order]]
    squares, p, c, t = float((g[moving] ** 2).sum()), -(W[moving].T @ g[moving]), np.zeros(W.shape[1]), 0.0
    for start in range(0, len(order) + 1, _BREAKPOINTS):
        some = order[start : start + _BREAKPOINTS]
        ends = times[some]
        S = np.maximum(squares - np.concatenate([[0.0], np.cumsum(g[some] ** 2)]), 0.0)
        P = p + np.concatenate([np.zeros((1, len(p))), np.cumsum(g[some, None] * W[some], 0)])
        begins = np.concatenate([[t], ends])
        C = c + np.concatenate([np.zeros((1, len(p))), np.cumsum(np.diff(begins)[:, None] * P[:-1], 0)])
        slopes = -S + theta * begins * S - (P * np.linalg.solve(M, C.T).T).sum(1)
        curvatures = np.maximum(theta * S - (P * np.linalg.solve(M, P.T).T).sum(1), _FLAT * theta * squares)
        with np.errstate(divide="ignore", invalid="ignore"):
            stops = begins + np.maximum(np.where(slopes < 0, -slopes / curvatures, 0.0), 0.0)
        is_last = start + _BREAKPOINTS > len(order)
        inside = stops < np.concatenate([ends, [math.inf]])
        if not is_last:
            inside[-1] = False  # the next bounds tell where that ends
        if inside.any():
            k = int(inside.argmax())
            t, c = float(stops[k]), C[k] + (stops[k] - begins[k]) * P[k]
            break
        squares, p, c, t = float(S[-1]), P[-1], C[-1], float(begins[-1])
    z = np.where(g == 0, 0.0, np.where(times <= t, np.where(g < 0, high, low), -t * g))
    return np.where(times == 0, 0.0, z), c


class NewtonCG:
    """Newton's direction by conjugate gradients: Nocedal and Wright, 2006, Algorithm 7.1.

    Where a direction d of negative curvature comes up it is not discarded, as there, but followed as far as positive
    curvature of the same size would allow: that leaves saddles.
    """

    def __init__(
        self,
        objective: Objective,
        product: Product,
        *,
        error: float,
        max_products: int,
        saddle_products: int,
        seed: int,
    ) -> None:
        self._objective, self._product, self._error = objective, product, error
        self._max_products, self._saddle_products = max_products, saddle_products
        self._rng, self._looks = np.random.default_rng(seed), 0
        #: Whether the last look met curvature of any sign, rather than a plain.
        self.curved = False
        self._log_largest = -math.inf

    def direction(self, place: Place) -> Array:
        """Return an inexact solution of Hp = −g, to min(½, √(‖g‖/‖g₀‖))·‖g‖, g₀ the largest yet; 0 where H is flat."""
        g, exponent = normalized(place.gradient)
        norm = _norm(g)
        log_norm = math.log2(norm) + exponent if norm > 0 else -math.inf
        self._log_largest = max(self._log_largest, log_norm)
        relative = 2.0 ** max(0.5 * (log_norm - self._log_largest), -1000.0) if norm > 0 else 0.0
        solution, negative = self._solve(place, g, min(0.5, relative) * norm, self._max_products)
        if negative is not None:
            d, residual, curvature = negative
            solution = solution - residual / curvature * d
        return scaled(solution, exponent)

    def learn(self, before: Place, after: Place) -> None:
        """Do nothing: the next products tell."""

    def reset(self) -> None:
        """Do nothing: there is no memory."""

    def freeze(self) -> Callable[[], State]:
        """Keep how often random numbers were drawn."""
        state = {"looks": self._looks, "log_largest_gradient": self._log_largest}
        return lambda: state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Draw as many random numbers."""
        self._log_largest = float(state["log_largest_gradient"])
        for _ in range(int(state["looks"])):
            self._look()

    def _look(self) -> Array:
        self._looks += 1
        return self._objective.random(self._rng)

    def negative_curvature(self, place: Place) -> tuple[Array, float] | None:
        """Run conjugate gradients from a random vector, as a zero gradient leads nowhere."""
        solution, negative = self._solve(place, self._look(), 0.0, self._saddle_products)
        self.curved = negative is not None or bool(solution.any())
        if negative is None:
            return None
        d, _, curvature = negative
        return (-d if float(d @ place.gradient) > 0 else d), curvature

    def _solve(
        self, place: Place, b: Array, tolerance: float, most: int
    ) -> tuple[Array, tuple[Array, float, float] | None]:
        """Solve Hz = −b; where negative curvature ends that, give d, rᵀr and dᵀHd too."""
        z, r, d = 0 * b, b, -b
        squares, largest = float(r @ r), 0.0
        for _ in range(most):
            Hd = self._product(place.x, d)
            if not bool(self._objective.xp.isfinite(Hd).all()):
                break
            curvature, length = float(d @ Hd), float(d @ d)
            largest = max(largest, _norm(Hd) / math.sqrt(length))
            if abs(curvature) <= self._error * largest * length:
                break  # flat, as far as can be told
            if curvature < 0:
                return z, (d, squares, curvature)
            step = squares / curvature
            if not math.isfinite(step):
                break  # as good as flat
            z, r = z + step * d, r + step * Hd
            before, squares = squares, float(r @ r)
            if math.sqrt(squares) <= tolerance:
                break
            d = squares / before * d - r
        return z, None


def _norm(x: Array) -> float:
    return _scaled_norm(x, 0)


def _scaled_norm(x: Array, exponent: int) -> float:
    """Return ‖x‖·2^−exponent."""
    x, own = normalized(x)
    return ldexp(math.sqrt(float(x @ x)), own - exponent)
