"""Minimise a loss of the whole batch: L-BFGS, Newton-CG, or any of the optimizers, until there is a reason to stop."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ravine import _core, adafactor, muon, optimizers, trees
from ravine.backends import is_array
from ravine.bounds import Box, bounds_of
from ravine.descent import LBFGS, Model, NewtonCG, steepest
from ravine.hessian import Operator
from ravine.history import History
from ravine.line_search import DECREASE, SHORTENINGS, SHORTER, Line, Place, at_precision, search
from ravine.objective import Array, LossAndGrad, Objective, Tree, scipy

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

__all__ = ["minimize"]

RULES: dict[str, Callable[..., Any]] = {
    name.lower(): rule
    for name, rule in vars(optimizers).items()
    if name in optimizers.__all__ and issubclass(rule, optimizers.Optimizer) and rule is not optimizers.Optimizer
} | {"adafactor": adafactor.Adafactor, "muon": muon.Muon}

#: Beyond, steps relative to the parameters have squares of 0, and no difference of gradients can be taken.
_LARGEST = 1e150

Callback: TypeAlias = Callable[["OptimizeResult"], object]

(
    GRADIENT_SMALL,
    LOSS_CHANGE_SMALL,
    AT_PRECISION,
    MAX_ITERATIONS,
    MAX_EVALUATIONS,
    STOPPED_BY_CALLBACK,
    LINE_SEARCH_FAILED,
    NOT_FINITE,
    UNBOUNDED,
    OVERFLOW,
    FLAT,
) = range(11)
_SUCCESS = (GRADIENT_SMALL, LOSS_CHANGE_SMALL, AT_PRECISION)


def minimize(
    loss_and_grad: LossAndGrad,
    params: Tree,
    method: str | Callable[..., optimizers.Optimizer] = "lbfgs",
    *,
    max_iterations: int | None = None,
    max_evaluations: int | None = None,
    gradient_tolerance: float | None = None,
    loss_tolerance: float = 0.0,
    bounds: Any = None,
    callback: Callback | None = None,
    hvp: Callable[[Tree, Tree], Tree] | None = None,
    state: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    maxiter: int | None = None,
    tol: float | None = None,
) -> OptimizeResult:
    r"""Minimise a loss that is the same function at every call, as that of the whole batch is.

    .. math:: w \leftarrow w + \alpha p, \qquad p = -H g \;\text{(L-BFGS)} \quad\text{or}\quad
        \nabla^2 L\, p \approx -g \;\text{(Newton-CG)}

    L-BFGS and Newton-CG choose α by a line search under the strong Wolfe conditions. A loss or gradient that is not
    finite means that α was too long. They never accept a higher loss. No step depends on the scale of the
    loss. Newton-CG follows negative curvature, and where the gradient is small looks for some from a random start, so
    that it leaves saddles.

    Args:
        loss_and_grad: a function of ``params`` that gives (loss, gradients in the nesting of params).
        params: array, or any nesting of dict, list and tuple of arrays (NumPy or CuPy; float64, float32, float16);
            changed in place, and left at the iterate of the lowest loss. If an error is raised they are restored bit
            for bit.
        method: ``"lbfgs"`` (``"L-BFGS-B"``); ``"newton-cg"``; the name of an optimizer (``"sgd"``, ``"adam"``, …), in
            any case; or what makes one from params, such as the class `rv.Adam`.
        max_iterations, maxiter: how many steps at most, ≥ 0 (1000), with those before ``state``.
        max_evaluations: how many calls of loss_and_grad at most, ≥ 1, with those before ``state``; None for no limit.
        gradient_tolerance, tol: stop where no element of the gradient is larger, ≥ 0 (1e-5).
        loss_tolerance: ≥ 0; stop after a step that changes the loss by at most this times max(|L|, 1); 0 for never.
        bounds: of L-BFGS: (low, high) for all parameters, or a nesting like theirs of such pairs; numbers, arrays, or
            None for an open end. Also scipy's ``Bounds``, and a list of pairs for the elements of one vector. A start
            outside is moved to the nearest bound. The projected gradient decides when to stop.
        callback: called after each step with an ``OptimizeResult`` of x, fun, jac, gradient_norm, nit and nfev; x and
            jac are copies. It may raise StopIteration to stop.
        hvp: for Newton-CG: ``hvp(params, v)`` gives the Hessian times v; v and the result nest as params do. Without it
            each product is a central difference of two gradients.
        state: ``state`` of an earlier result, to go on from there as if it had not stopped, bit for bit, with the same
            arguments; params are overwritten. The first call, at its point, is not counted again.
        options: of L-BFGS: ``memory`` (10), how many pairs are kept. Of Newton-CG: ``max_products`` (250, at most twice
            the number of elements), Hessian-vector products of a step; ``saddle_products`` (10, at most the number of
            elements), those of the look for negative curvature, 0 for none; ``seed`` (0) of its start. Otherwise
            arguments of the optimizer: ``options={"lr": 0.1}``.

    Returns:
        scipy's ``OptimizeResult``: x is params itself; fun the loss and jac the gradient there (float64, as params
        nest); nit, nfev, njev (equal to nfev), nhev (Hessian-vector products; two evaluations each without hvp);
        history, a `History` of ``loss`` and ``gradient_norm`` (the largest absolute element) by iteration; state, plain
        dicts of arrays, numbers and strings; success, status and message: 0 the gradient is small, 1 so is the loss's
        change, 2 no further decrease within the precision of the coarsest of parameters, loss and gradient (these three
        are success), 3 max_iterations, 4 max_evaluations, 5 the callback, 6 the line search found no lower loss where
        the gradient promises one, 7 loss or gradient not finite after the next step, 8 the loss is unbounded, 9 it
        overflows after every step, 10 the gradient is exactly 0 at the start, which shows no way down.

    Raises:
        TypeError: a parameter that is no writable floating array of 16, 32 or 64 bits, or an unknown option.
        ValueError: gradients of another nesting or shape, a start that is not finite, bounds without a point between
            them, a state of other parameters or of another loss, an argument out of range.
        ModuleNotFoundError: scipy is not installed; ``pip install 'ravine[diagnose]'``.

    Source: Nocedal and Wright, "Numerical Optimization", 2nd ed., 2006, Algorithms 7.1, 7.4 and 7.5; for the line
    search Moré and Thuente, 1994; for bounds Byrd, Lu, Nocedal and Zhu, 1995, and Morales and Nocedal, 2011.

    >>> w = {"a": np.array([3.0, -1.0])}
    >>> result = rv.minimize(lambda w: ((w["a"] ** 2).sum(), {"a": 2 * w["a"]}), w)
    >>> result.message
    'the gradient is small: no element above 1e-05'
    >>> result.x is w, result.fun, w["a"].tolist()
    (True, 0.0, [0.0, 0.0])
    """
    scipy("optimize")
    options = dict(options or {})
    name, make = _method(method, hvp, bounds, options)
    limits = _limits(
        {
            "max_iterations": (max_iterations, {"maxiter": maxiter}, 1000),
            "max_evaluations": (max_evaluations, {}, None),
            "gradient_tolerance": (gradient_tolerance, {"tol": tol}, 1e-5),
            "loss_tolerance": (loss_tolerance, {}, 0.0),
        }
    )
    with Objective(loss_and_grad, params) as objective:
        _check_state(state, name, objective)
        box = None if bounds is None else bounds_of(bounds, objective)
        run = _Run(objective, *limits, callback, box, state)
        run.method = name
        try:
            status = make(run)
        except _OutOfEvaluationsError:
            status = MAX_EVALUATIONS
        result = run.result(status)
    # Leaving the block has put them back to the start.
    _core.uninterrupted(partial(objective.move, run.best.x), again=True)
    return result


class _OutOfEvaluationsError(Exception):
    pass


class _Run:
    """What all methods share: limits, the history, where it is, and the best place so far."""

    def __init__(
        self,
        objective: Objective,
        max_iterations: int,
        max_evaluations: int | None,
        gradient_tolerance: float,
        loss_tolerance: float,
        callback: Callback | None,
        box: Box | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.objective, self.callback, self.box = objective, callback, box
        self.max_iterations = max_iterations
        self.max_evaluations = math.inf if max_evaluations is None else max_evaluations
        self.gradient_tolerance, self.loss_tolerance = gradient_tolerance, loss_tolerance
        self.history, self.iteration, self.products, self.addendum = History(), 0, 0, ""
        self.best: Place
        self.place: Place
        self.method = ""
        #: What the method's next steps depend on, as it was at ``place``.
        self.frozen: Callable[[], dict[str, Any]] = dict
        #: Evaluations and products when ``place`` was reached: a run that goes on counts from there.
        self._counts = (0, 0)
        self._best_iteration, self._losses = 0, (math.inf, math.inf)
        self.resumed = state

    def start(self) -> Place:
        """Evaluate where the parameters are, or go to where the state says; twice is once.

        Raises:
            ValueError: it is not finite there, or not what the state says.
        """
        objective = self.objective
        if hasattr(self, "place"):
            return self.place
        if self.resumed is not None:
            self._resume(self.resumed)
            return self.place
        x = objective.point()
        if self.box is not None:
            objective.move(self.box.clip(x))
            x = objective.point()
        self.best = self.at(x, *objective.finite(x, "at the start"))
        self.reach(self.best)
        return self.place

    def at(self, x: Array, loss: float, gradient: Array) -> Place:
        """Return a place, with what the bounds leave of the gradient."""
        return Place(x, loss, gradient, None if self.box is None else self.box.free(x, gradient))

    def evaluate(self, x: Array) -> tuple[float, Array]:
        self.check_evaluations()
        return self.objective.evaluate(x)

    def check_evaluations(self) -> None:
        if self.objective.evaluations >= self.max_evaluations:
            raise _OutOfEvaluationsError

    def arrive(self, place: Place, frozen: Callable[[], dict[str, Any]]) -> int | None:
        """Take note of an iterate; return a status if there is a reason to stop."""
        self.place, self.frozen, norm = place, frozen, place.norm
        if self.resumed is not None:  # this iterate was noted by the run that gave the state
            self.resumed = None
            return self._judge(place)
        self.reach(place)
        self.history.record(step=self.iteration, loss=place.loss, gradient_norm=norm)
        if (place.loss, norm) <= (self.best.loss, self.best.norm):
            self.best, self._best_iteration = place, self.iteration
        self._losses = self._losses[1], place.loss
        if self.callback is not None and self.iteration > 0:
            try:
                self.callback(self._intermediate(place, norm))
            except StopIteration:
                return STOPPED_BY_CALLBACK
            finally:
                self.objective.move(place.x)  # whatever the callback did to the caller's own arrays
        return self._judge(place)

    def reach(self, place: Place) -> None:
        """Take note of where a run that goes on begins."""
        self.place, self._counts = place, (self.objective.evaluations, self.products)

    def _judge(self, place: Place) -> int | None:
        last, loss = self._losses
        if place.norm <= self.gradient_tolerance:
            return FLAT if self.iteration == 0 and not bool(place.gradient.any()) else GRADIENT_SMALL
        if abs(last - loss) <= self.loss_tolerance * max(abs(loss), 1.0) and self.loss_tolerance > 0:
            return LOSS_CHANGE_SMALL
        return MAX_ITERATIONS if self.iteration >= self.max_iterations else None

    def _intermediate(self, place: Place, norm: float) -> OptimizeResult:
        arrays = iter(self.objective.leaves.values())
        return scipy("optimize").OptimizeResult(
            x=trees.map(lambda _: next(arrays).copy(), self.objective.params),
            fun=place.loss,
            jac=self.objective.tree(place.gradient),
            gradient_norm=norm,
            nit=self.iteration,
            nfev=self.objective.evaluations,
        )

    def result(self, status: int) -> OptimizeResult:
        evaluations = self.objective.evaluations
        return scipy("optimize").OptimizeResult(
            x=self.objective.params,
            fun=self.best.loss,
            jac=self.objective.tree(self.best.gradient),
            nit=self.iteration,
            nfev=evaluations,
            njev=evaluations,
            nhev=self.products,
            status=status,
            success=status in _SUCCESS,
            message=self._message(status),
            history=self.history,
            state=self._state(),
        )

    def _message(self, status: int) -> str:
        coarser = self.objective.precision.message
        of = f"precision{coarser}" if coarser else "the parameters' precision"
        message = {
            GRADIENT_SMALL: f"the gradient is small: no element above {self.gradient_tolerance:g}{self.addendum}",
            LOSS_CHANGE_SMALL: f"the loss changed by no more than {self.loss_tolerance:g}·max(|L|, 1) in a step",
            AT_PRECISION: f"no further decrease within {of}",
            MAX_ITERATIONS: f"max_iterations: {self.max_iterations} steps were made",
            MAX_EVALUATIONS: f"max_evaluations: loss_and_grad was called {self.objective.evaluations} times",
            STOPPED_BY_CALLBACK: "the callback raised StopIteration",
            LINE_SEARCH_FAILED: "the line search found no lower loss along −gradient: the gradient is not this loss's "
            "(see rv.check_gradient), the loss differs from call to call, or here is a kink",
            NOT_FINITE: "the next step leads to where loss or gradient is not finite",
            UNBOUNDED: "the loss is unbounded below: the next step leads to where it is −inf",
            OVERFLOW: "overflow: the next step, however short, leads to where loss or gradient is infinite",
            FLAT: "the gradient is exactly 0 at the start, and shows no way down: a plateau, a saddle, a maximum or a "
            f"minimum; start elsewhere, or see method='newton-cg'{self.addendum}",
        }[status]
        if self._best_iteration < len(self.history) - 1:
            message += f"; x is of iteration {self._best_iteration}, whose loss was the lowest"
        return message

    def _state(self) -> dict[str, Any]:
        return {
            "format": 1,
            "method": self.method,
            "iteration": self.iteration,
            "evaluations": self._counts[0],
            "products": self._counts[1],
            "best_iteration": self._best_iteration,
            "place": self._plain(self.place),
            "best": self._plain(self.best),
            "history": {name: self.history[name].values for name in ("loss", "gradient_norm")},
            self.method: _on_host(self.frozen()),
        }

    def _plain(self, place: Place) -> dict[str, Any]:
        x = {name: trees.to_host(part) for name, part in trees.leaves(self.objective.tree(place.x)).items()}
        return {"x": x, "loss": place.loss, "gradient": trees.to_host(place.gradient).copy()}

    def _resume(self, state: Mapping[str, Any]) -> None:
        objective = self.objective

        def place(plain: Mapping[str, Any]) -> Place:
            x = np.concatenate([np.asarray(plain["x"][name], np.float64).reshape(-1) for name in objective.leaves])
            gradient = objective.put(np.array(plain["gradient"], np.float64))
            return self.at(objective.put(x), float(plain["loss"]), gradient)

        self.place, self.best = place(state["place"]), place(state["best"])
        self.iteration, self._best_iteration = int(state["iteration"]), int(state["best_iteration"])
        losses, norms = (np.asarray(state["history"][name]).tolist() for name in ("loss", "gradient_norm"))
        for step, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
            self.history.record(step=step, loss=loss, gradient_norm=norm)
        self._losses = (math.inf, math.inf, *losses)[-2:]
        # The function again, to see how it is rounded, and that it is the same; counted by the run before.
        loss, _ = objective.evaluate(self.place.x)
        if abs(loss - self.place.loss) > math.sqrt(objective.roundoff) * max(abs(loss), abs(self.place.loss)):
            raise ValueError(f"state: expected the loss that it is of, {self.place.loss:g} at its point, got {loss:g}")
        objective.evaluations, self.products = self._counts = int(state["evaluations"]), int(state["products"])


def _on_host(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _on_host(item) for key, item in tree.items()}
    return trees.to_host(tree) if is_array(tree) else tree


def _descend(run: _Run, model: Model) -> int:
    """Go from place to place by line searches along the model's directions."""
    if run.resumed is not None:
        model.restore(run.resumed.get(run.method, {}))  # a file may have left out an empty one
    place = run.start()
    while True:
        status = run.arrive(place, model.freeze())
        if status is None:
            line, last_resort = _line(run, place, model.direction(place)), steepest(place, run.box)
            known = bool((line.direction != last_resort).any())
            after = search(line, lengthen=not known)
            if after is None and known:
                model.reset()
                line = _line(run, place, last_resort)
                after = search(line, lengthen=True)
            if after is None:
                return _why_stuck(line)
            model.learn(place, after)
        else:
            if status not in (GRADIENT_SMALL, FLAT) or run.iteration >= run.max_iterations:
                return status
            after, run.addendum = _leave_saddle(run, place, model)
            if after is None:
                return GRADIENT_SMALL if model.curved else status
        place = after
        run.iteration += 1


def _line(run: _Run, place: Place, direction: Array) -> Line:
    return Line(run.objective, run.evaluate, place, direction, run.box)


def _why_stuck(line: Line) -> int:
    # Steps that promise no more than rounding may end at the start itself.
    trials = [alpha for alpha in line.trials if -alpha * line.slope > line.floor]
    beyond = {line.beyond.get(alpha) for alpha in trials}
    if "unbounded" in beyond:
        return UNBOUNDED
    if beyond and None not in beyond:
        return NOT_FINITE if "nan" in beyond else OVERFLOW
    return AT_PRECISION if at_precision(line) else LINE_SEARCH_FAILED


def _leave_saddle(run: _Run, place: Place, model: Model) -> tuple[Place | None, str]:
    """Return a place with a lower loss along negative curvature, or why there is none; the slope here is near 0."""
    before, found = run.products, model.negative_curvature(place)
    products = run.products - before
    if found is None:
        return None, f"; {products} Hessian-vector products showed no negative curvature" if products else ""
    direction, curvature = found
    line = _line(run, place, direction)
    alpha = (1 + float(abs(place.x).max())) / float(abs(direction).max())
    for _ in range(SHORTENINGS):
        predicted = alpha * min(line.slope, 0.0) + line.scaled(0.5 * alpha**2 * curvature)
        if -predicted <= line.floor or not line.moves(alpha):
            break
        if line.at(alpha)[0] <= line.loss + DECREASE * predicted:
            return line.place(), ""
        alpha *= SHORTER
    return None, "; there is negative curvature, but no lower loss was found along it"


def _follow_rule(run: _Run, make: Callable[[Tree], optimizers.Optimizer]) -> int:
    """Make the steps of an optimizer."""
    objective, function, grads = run.objective, run.objective.function, None

    def remember(params: Tree) -> tuple[Any, Tree]:
        nonlocal grads  # a step needs the gradients in the parameters' dtype, as the function gives them
        result = function(params)
        if not (isinstance(result, tuple | list) and len(result) == 2):
            return result
        loss, grads = result
        # What NumPy makes of arrays without axes, no step takes.
        grads = trees.map(lambda g: np.asarray(g) if isinstance(g, np.generic) else g, grads)
        return loss, grads

    objective.function = remember
    optimizer = make(objective.params)
    place = run.start()
    if run.resumed is not None:
        optimizer.load_state_dict(run.resumed[run.method])
    while True:
        if not (math.isfinite(place.loss) and bool(objective.xp.isfinite(place.gradient).all())):
            return UNBOUNDED if place.loss == -math.inf else NOT_FINITE
        status = run.arrive(place, optimizer.state_dict)
        if status is not None:
            return status
        run.check_evaluations()
        optimizer.step(grads)
        run.iteration += 1
        x = objective.point()
        place = run.at(x, *run.evaluate(x))
        run.reach(place)


def _method(
    method: str | Callable[..., optimizers.Optimizer],
    hvp: Callable[[Tree, Tree], Tree] | None,
    bounds: Any,
    options: dict[str, Any],
) -> tuple[str, Callable[[_Run], int]]:
    """Return the method's name in a state, and what runs it, its arguments checked."""
    name = _spelling(method) if isinstance(method, str) else None
    if hvp is not None and name != "newtoncg":
        raise ValueError(f"hvp: only method='newton-cg' multiplies by the Hessian, got method={method!r}")
    if bounds is not None and name not in _LBFGS:
        raise ValueError(f"bounds: only method='lbfgs' keeps them, got method={method!r}")
    if name in _LBFGS:
        sizes = _sizes(options, memory=(10, 1))
        return "lbfgs", lambda run: _descend(run, LBFGS(run.objective, **sizes, box=run.box))
    if name == "newtoncg":
        sizes = _sizes(options, max_products=(250, 1), saddle_products=(10, 0), seed=(0, 0))
        return "newton-cg", lambda run: _newton(run, hvp, sizes)
    rule = method if callable(method) else RULES.get(str(name))
    if rule is None:
        known = ["lbfgs", "newton-cg", *sorted(RULES)]
        near = difflib.get_close_matches(str(name), known, n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(f"method: expected one of {known}, got {method!r}{hint}")
    return "optimizer", lambda run: _follow_rule(run, lambda params: rule(params, **options))


#: scipy's name says that bounds are kept, which any of them does.
_LBFGS = ("lbfgs", "lbfgsb")


def _spelling(name: str) -> str:
    """Return a name as the table has it: `L-BFGS-B`, `Newton-CG` and `schedule_free_sgd` are names, too."""
    return "".join(c for c in name.lower() if c.isalnum())


def _newton(run: _Run, hvp: Callable[[Tree, Tree], Tree] | None, sizes: dict[str, int]) -> int:
    objective = run.objective

    def gradient(x: Array, where: str) -> Array:
        loss, found = run.evaluate(x)
        return found if math.isfinite(loss) else math.nan * found  # what it says there counts for nothing

    def product(x: Array, v: Array) -> Array:
        if hvp is None and float(abs(x).max()) > _LARGEST:
            return math.nan * v
        result = Operator(objective, hvp, x, gradient)(v)
        run.products += 1
        return result

    n = objective.size
    run.start()  # which shows how the gradient is rounded
    model = NewtonCG(
        objective,
        product,
        error=objective.roundoff ** (2 / 3),
        max_products=min(sizes["max_products"], 2 * n),
        saddle_products=min(sizes["saddle_products"], n),
        seed=sizes["seed"],
    )
    return _descend(run, model)


def _sizes(options: dict[str, Any], **known: tuple[int, int]) -> dict[str, int]:
    """Return the options as integers; ``known`` has defaults and least values."""
    unknown = sorted(options.keys() - known)
    if unknown:
        raise TypeError(f"options: unknown {unknown}; this method takes {list(known)}")
    return {
        name: _integer(f"options[{name!r}]", options.get(name, default), least)
        for name, (default, least) in known.items()
    }


def _limits(given: dict[str, tuple[Any, dict[str, Any], Any]]) -> tuple[int, int | None, float, float]:
    """Return the limits, by their own names or by scipy's, checked."""
    found = []
    for name, (own, others, default) in given.items():
        values = {n: v for n, v in {name: own, **others}.items() if v is not None}
        if len(values) > 1:
            raise TypeError(f"{list(values)[1]}: another name of {name}, which is given too; pass one of them")
        said, value = next(iter(values.items()), (name, default))
        if name.startswith("max_") and value is not None:
            value = _integer(said, value, int(name == "max_evaluations"))
        elif value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{said}: expected a finite number >= 0, got {value!r}")
        found.append(value)
    iterations, evaluations, gradient, loss = found
    return iterations, evaluations, gradient, loss


def _check_state(state: Mapping[str, Any] | None, method: str, objective: Objective) -> None:
    """Make sure that a state is one of this method and these parameters."""
    if state is None:
        return
    if not isinstance(state, Mapping) or not {"method", "place", "best", "history"} <= state.keys():
        got = list(state)[:5] if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"state: expected the state of an earlier result, as in state=result.state, got {got}")
    if state["format"] != 1:
        raise ValueError(f"state: expected format 1, got {state['format']!r}, of another release of ravine")
    if state["method"] != method:
        raise ValueError(f"state: expected one of method {method!r}, got one of {state['method']!r}")
    shapes = {name: array.shape for name, array in objective.leaves.items()}
    theirs = {name: np.shape(array) for name, array in state["place"]["x"].items()}
    if theirs != shapes:
        raise ValueError(f"state: expected parameters {shapes}, got one of {theirs}")


def _integer(name: str, value: Any, least: int) -> int:
    number = operator.index(value)
    if number < least:
        raise ValueError(f"{name}: expected an integer >= {least}, got {number}")
    return number
