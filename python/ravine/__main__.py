"""``python -m ravine``: what runs here, how fast it is beside its peers, and what formula an optimizer computes."""

from __future__ import annotations

import argparse
import ast
import difflib
import inspect
from typing import Any

import numpy as np

from ravine import adafactor, bench, config, conventions, muon, optimizers

__all__ = ["main"]

OPTIMIZERS = {
    name.lower(): getattr(optimizers, name)
    for name in optimizers.__all__
    if inspect.isclass(getattr(optimizers, name)) and name not in ("Optimizer", "Options")
} | {"adafactor": adafactor.Adafactor, "muon": muon.Muon}


def _setting(text: str) -> tuple[str, Any]:
    """Read ``name=value``, the value as in Python."""
    name, equals, value = text.partition("=")
    try:
        if not equals:
            raise ValueError
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        raise argparse.ArgumentTypeError(f"expected name=value, like momentum=0.9, got {text!r}") from None


def _optimizer(text: str) -> str:
    """Read an optimizer's name: `AdamW`, `adamw` and `adam-w` are one."""
    name = "".join(c for c in text.lower() if c.isalnum())
    if name in OPTIMIZERS:
        return name
    near = difflib.get_close_matches(name, OPTIMIZERS, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(OPTIMIZERS)}"
    raise argparse.ArgumentTypeError(f"invalid choice: {text!r}; {hint}")


def _formula(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    make = OPTIMIZERS[arguments.optimizer]
    settings = dict(arguments.settings)
    if arguments.like:
        settings["like"] = arguments.like = arguments.like.lower()
    elif inspect.signature(make).parameters["lr"].default is inspect.Parameter.empty:
        settings.setdefault("lr", 0.01)
    try:
        if arguments.like:
            chosen = {name: value for name, value in settings.items() if name != "like"}
            needs = conventions.convention(make, arguments.like, **chosen).needs
            settings = dict.fromkeys(needs, 0.01) | settings
        print(make(np.zeros((1, 1)), **settings).formula())
    except (TypeError, ValueError) as error:
        parser.error(str(error))


def main(argv: list[str] | None = None) -> None:
    """Do what the command line says.

    Args:
        argv: the words behind ``python -m ravine``; those of this process, if None.

    >>> from ravine.__main__ import main
    >>> main(["formula", "sgd", "momentum=0.9", "nesterov=True"])
    b ← μ·b + g
    w ← w − γ·(g + μ·b)
    γ = 0.01, μ = 0.9
    """
    parser = argparse.ArgumentParser(prog="python -m ravine", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    info = commands.add_parser("info", help="version, instruction set, threads, libraries, GPUs")
    info.set_defaults(run=lambda *_: config.show_config())

    formula = commands.add_parser("formula", help="what an optimizer computes, with its defaults or your settings")
    formula.add_argument(
        "optimizer", type=_optimizer, metavar="OPTIMIZER", help=", ".join(OPTIMIZERS) + "; in any case"
    )
    formula.add_argument("settings", nargs="*", type=_setting, metavar="NAME=VALUE", help="its arguments, as in Python")
    systems = ", ".join(conventions.TABLE)
    formula.add_argument("--like", metavar="SYSTEM", help=f"as that system has it, with its defaults: {systems}")
    formula.set_defaults(run=_formula)

    measure = commands.add_parser(
        "bench",
        help="a step beside torch, optax, thinc, NumPy and C, as far as installed",
        description=bench.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bench.add_arguments(measure)
    measure.set_defaults(run=bench.main)

    arguments, rest = parser.parse_known_args(argv)
    if "settings" in arguments and not any(word.startswith("-") for word in rest):
        # Those behind an option, which argparse does not give to a list that it has seen end.
        try:
            arguments.settings += [_setting(word) for word in rest]
        except argparse.ArgumentTypeError as error:
            parser.error(str(error))
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.run(parser, arguments)


if __name__ == "__main__":
    main()
