"""What the site shows beyond the pages that are written by hand: the rules, the reference, files of the repository.

Nothing here needs mkdocs, so that the tests can look at it.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import ravine as rv

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"

# The reference

#: What is no part of the promise, and why.
INTERNAL = {
    "ravine.__main__": "the command line; its help explains it",
    "ravine._core": "the compiled core",
    "ravine.backends": "NumPy or CuPy?",
    "ravine.bench": "behind the command line",
    "ravine.cuda": "the CUDA kernels",
    "ravine.bounds": "inside of minimize",
    "ravine.descent": "inside of minimize",
    "ravine.line_search": "inside of minimize",
    "ravine.objective": "shared by the checks",
    "ravine.report": "what a step reports; Optimizer.step explains it",
    **dict.fromkeys(
        [f"ravine.torch.{part}" for part in ("adam", "binding", "classes", "matrix", "optimizer")],
        "ravine.torch exports what is public",
    ),
    "ravine.whole": "shared by Adafactor and Muon",
}
#: The order of the reference; what is not named follows by the alphabet.
ORDER = [
    "optimizers",
    "adafactor",
    "muon",
    "sparse",
    "schedules",
    "functional",
    "norms",
    "init",
    "data",
    "nn",
    "sequential",
    "losses",
    "layers",
    "batch_norm",
    "layer_norm",
]

#: What a page explains besides: names that docstrings refer to.
BESIDES = {"ravine.optimizers": [f"ravine.optimizers.{name}" for name in ("OptionsButDecay", "Value", "Groups")]}
SHOWN_ALONE = "{show_root_heading: true, show_root_toc_entry: true, show_root_full_path: false}"


def modules() -> list[str]:
    """Name the public modules, in the order of the reference. They need not be importable: torch may be missing."""
    names = [module.name for module in pkgutil.walk_packages(rv.__path__, "ravine.")]
    names = [n for n in names if not any(n == i or n.startswith(f"{i}.") for i in INTERNAL)]
    order = {f"ravine.{name}": place for place, name in enumerate(ORDER)}
    return sorted(names, key=lambda name: (order.get(name, len(order)), name))


def public(module: str) -> list[str]:
    """Name what a module exports, from its text."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    found = re.search(r"^__all__ = (\[.*?\])", Path(spec.origin).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert found is not None, f"{module} has no __all__"
    return re.findall(r'"(\w+)"', found[1])


def reference() -> dict[str, str]:
    """Make the pages of the reference, by their paths under docs/."""
    pages = {}
    lines = [
        "# Reference",
        "",
        "`import ravine as rv` brings what stands in these modules, or the module: `rv.Adam`, `rv.schedules.cosine`.",
        "",
    ]
    lines += ["| Module | |", "|---|---|"]
    for module in modules():
        short = module.removeprefix("ravine.")
        first = _first_line(module)
        lines.append(f"| [`{module}`]({short}.md) | {first} |")
        blocks = [f"::: {module}", *(f"::: {name}\n    options: {SHOWN_ALONE}" for name in BESIDES.get(module, []))]
        pages[f"api/{short}.md"] = "\n\n".join([f"# {module}", *blocks]) + "\n"
    return {"api/index.md": "\n".join(lines) + "\n", **pages}


def _first_line(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    text = Path(str(spec.origin)).read_text(encoding="utf-8")
    found = re.match(r'r?"""(.*?)(?:"""|\n)', text)
    return found[1] if found else ""


# The rules

#: What each class can be told to compute: a title, and the arguments. A test sees to it that every rule is among them.
VARIANTS: dict[type, list[tuple[str, dict[str, Any]]]] = {
    rv.SGD: [
        ("Plain", {"lr": 0.1}),
        ("Momentum, accumulating (torch's)", {"lr": 0.1, "momentum": 0.9}),
        ("with dampening", {"lr": 0.1, "momentum": 0.9, "dampening": 0.1}),
        ("Nesterov", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        ("Velocity (Keras's)", {"lr": 0.1, "momentum": 0.9, "form": "velocity"}),
        ("Nesterov on the velocity", {"lr": 0.1, "momentum": 0.9, "form": "velocity", "nesterov": True}),
        ("Nesterov as Chainer has it", {"lr": 0.1, "momentum": 0.9, "form": "velocity", "nesterov": "chainer"}),
        ("Heavy ball", {"lr": 0.1, "momentum": 0.9, "form": "heavy_ball"}),
        ("Average", {"lr": 0.1, "momentum": 0.9, "form": "average"}),
    ],
    rv.Adagrad: [
        ("Sum", {}),
        ("Sum from 0.1, ε inside (Keras's, optax's)", {"initial": 0.1, "eps_inside": True}),
        ("Mean", {"accumulate": "mean"}),
    ],
    rv.RMSprop: [
        ("Default", {}),
        ("ε inside the root", {"eps_inside": True}),
        ("The first step as it is", {"first": "square", "eps": 0.0}),
        ("Centered", {"centered": True}),
        ("Momentum behind the division", {"momentum": 0.9}),
        ("The same with γ in the buffer (Keras's, optax's)", {"momentum": 0.9, "lr_inside": True}),
        ("Centered, with momentum", {"centered": True, "momentum": 0.9}),
        ("Momentum before the division", {"momentum_before": 0.9}),
    ],
    rv.Adam: [
        ("Default", {}),
        ("ε inside the root", {"eps_inside": True}),
        ("ε before the correction", {"eps_hat": True}),
        ("Without bias correction", {"bias_correction": False}),
        ("AMSGrad", {"amsgrad": True}),
        ("AMSGrad, the largest v̂ (optax's)", {"amsgrad": True, "max_corrected": True}),
    ],
    rv.Adamax: [("Default", {}), ("ε outside, uncorrected (MLX's)", {"bias_correction": False, "eps_outside": True})],
    rv.NAdam: [("Default", {}), ("Constant momentum (optax's)", {"constant_momentum": True})],
    rv.RAdam: [("Default", {}), ("ε after the correction (optax's)", {"eps_hat": False})],
    rv.Yogi: [("The paper's", {}), ("With bias correction", {"bias_correction": True})],
    rv.Adafactor: [("Relative step size", {}), ("Absolute", {"lr": 1e-3, "scale_parameter": False})],
    rv.Muon: [
        ("Default", {}),
        ("As large as AdamW's updates", {"adjust_lr_fn": "match_rms_adamw"}),
        (
            "To convergence, without Nesterov's",
            {"nesterov": False, "ns_coefficients": rv.muon.CONVERGENT, "ns_steps": 20},
        ),
    ],
    rv.Lion: [("Default", {}), ("with decoupled decay", {"weight_decay": 0.1})],
    rv.LARS: [("Default", {"lr": 0.1}), ("with decay", {"lr": 0.1, "weight_decay": 1e-4})],
    rv.LAMB: [("Default", {}), ("with decay", {"weight_decay": 0.01})],
    rv.NovoGrad: [("Default", {}), ("with decay", {"weight_decay": 1e-3})],
}
#: All of them, in the order of their file.
CLASSES = [
    cls
    for name, cls in vars(rv.optimizers).items()
    if name in rv.optimizers.__all__ and issubclass(cls, rv.Optimizer) and cls is not rv.Optimizer
] + [rv.Adafactor, rv.Muon]
RANGES = {
    "not_negative": "≥ 0, finite",
    "fraction": "in [0, 1)",
    "not_below_one": "≥ 1, finite",
    "whole": "a whole number ≥ 0",
    "not_positive": "≤ 0, finite",
    "positive": "> 0, finite",
    "finite": "finite",
}


def optimizer(cls: type, arguments: dict[str, Any]) -> rv.Optimizer:
    """Make one over a parameter of one element, a matrix for those that take nothing else."""
    whole = issubclass(cls, rv.whole.WholeOptimizer)
    made: rv.Optimizer = cls({"w": np.zeros((1, 1) if whole else 1)}, **arguments)
    return made


def call(cls: type, arguments: dict[str, Any]) -> str:
    """Spell the call."""
    return f"rv.{cls.__name__}({', '.join(['params', *(f'{k}={v!r}' for k, v in arguments.items())])})"


def rules() -> str:
    """Describe every class: formulas as printed by the rule that runs, states, ranges."""
    own, lines = own_tests(), []
    for cls in CLASSES:
        summary = inspect.cleandoc(cls.__doc__ or "").splitlines()[0]
        lines += [f"## {cls.__name__}", "", f"{summary} [Reference][{cls.__module__}.{cls.__name__}].", ""]
        hyper: dict[str, str] = {}
        for title, arguments in VARIANTS.get(cls, [("Default", {})]):
            made = optimizer(cls, arguments)
            rule = made.state_dict()["rule"]
            hyper |= made._about["hyperparameters"]
            states = ", ".join(f"`{state}`" for state in made._about["states"]) or "none"
            lines += [f"**{title}.** `{call(cls, arguments)}`", "", "```text", made.formula(), "```", ""]
            lines += [f"Rule `{rule}`; states: {states}.", ""]
        lines += ["| Number | Symbol | Range |", "|---|---|---|"]
        both = {} if issubclass(cls, rv.whole.WholeOptimizer) else {"l2": "not_negative"}
        for name, kind in {**hyper, "weight_decay": "not_negative", **both}.items():
            if kind != "switch":
                lines.append(f"| `{_argument(name)}` | {rv._core.symbol(name)} | {RANGES[kind]} |")
        lines.append("")
        if cls.__name__ in own:
            lines += ["Tests of its own: " + ", ".join(f"`{test}`" for test in sorted(own[cls.__name__])) + ".", ""]
    return "\n".join(lines)


def registry() -> str:
    """Make the table of all rules of the core: who chooses each, its states, and its file."""
    chosen: dict[str, list[str]] = {}
    for cls in CLASSES:
        for _, arguments in VARIANTS.get(cls, [("Default", {})]):
            chosen.setdefault(optimizer(cls, arguments).state_dict()["rule"], []).append(cls.__name__)
    lines = ["| Rule | Chosen by | States | Formula in |", "|---|---|---|---|"]
    for rule, about in rv._core.rules().items():
        (file,) = [
            path.relative_to(ROOT).as_posix()
            for path in sorted(ROOT.glob("rust/rules/*.rs"))
            if re.search(rf'"{rule}"', path.read_text(encoding="utf-8"))
        ]
        cells = [
            f"`{rule}`",
            ", ".join(f"[{name}](#{name.lower()})" for name in dict.fromkeys(chosen[rule])),
            ", ".join(f"`{state}`" for state in about["states"]) or "none",
            f"`{file}`",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def own_tests() -> dict[str, set[str]]:
    """Find the tests of the rules that speak of one or two classes: class → tests."""
    path = ROOT / "tests" / "test_rules.py"
    text = path.read_text(encoding="utf-8")
    found: dict[str, set[str]] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            parts = [ast.get_source_segment(text, part) or "" for part in (*node.decorator_list, *node.body)]
            classes = {cls.__name__ for cls in CLASSES if re.search(rf"\brv\.{cls.__name__}\b", "\n".join(parts))}
            for name in classes if len(classes) <= 2 else ():
                found.setdefault(name, set()).add(f"{path.relative_to(ROOT).as_posix()}::{node.name}")
    return found


def _argument(name: str) -> str:
    for whole, parts in rv.optimizers._TUPLES.items():
        if name in parts:
            return f"{whole}[{parts.index(name)}]"
    return name


# The conventions

#: Arguments that choose between formulas of one class in some system.
_CHOICES: list[dict[str, Any]] = [
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "dampening": 0.1},
    {"form": "accumulate"},
    {"amsgrad": True},
    {"centered": True},
]


def conventions() -> str:
    """Tell what each system has under the name of each class: what differs from the class without ``like``."""
    lines = ["| Class | System | What differs |", "|---|---|---|"]
    for cls in CLASSES:
        for system in rv.conventions.systems(cls):
            line = rv.conventions.convention(cls, system)
            first = _differences(cls, line, {})
            parts = [", ".join(first)]
            for choice in _CHOICES:
                chosen = rv.conventions.convention(cls, system, **choice)
                refused = any(v not in chosen.refused.get(k, ((v,), ""))[0] for k, v in choice.items())
                if chosen != line and not refused and choice.keys() <= inspect.signature(cls).parameters.keys():
                    with_ = ", ".join(f"{k}={v!r}" for k, v in choice.items())
                    more = [part for part in _differences(cls, chosen, choice) if part not in first]
                    called = f", {chosen.name}" if chosen.name != line.name else ""
                    parts.append(f"with `{with_}`{called}: {', '.join(more)}" if more else "")
            what = "; ".join(part for part in parts if part) or "nothing"
            lines.append(f"| `{cls.__name__}` | {_named(system, line)} | {what} |")
    return "\n".join(lines)


def _named(system: str, line: Any) -> str:
    return line.name if system == "paper" else f"{system}: {line.name}"


def _differences(cls: type, line: Any, choice: dict[str, Any]) -> list[str]:
    own = {p.name: p.default for p in inspect.signature(cls).parameters.values()}
    own |= dict.fromkeys(("weight_decay",), own.get("weight_decay", 0.0)) | {
        "decay_implicit": False,
        "decay_unscaled": False,
    }
    changed = {k: v for k, v in {**line.defaults, **line.fixed}.items() if own.get(k) != v and k not in choice}
    parts = [f"`{k}={v!r}`" for k, v in changed.items()]
    parts += [f"`{k}={v!r}` is `{k}={m!r}`" for k, values in line.meaning.items() for v, m in values.items()]
    parts += [f"`{name}` must be given" for name in line.needs if own.get(name) is not inspect.Parameter.empty]
    if "weight_decay" in line.refused:
        parts.append("its decay is `l2`" if "coupled" in line.refused["weight_decay"][1] else "no `weight_decay`")
    parts += ["no `warmup_steps`"] if "warmup_steps" in line.refused else []
    return parts


# Files of the repository

IMAGE = re.compile(r"(!\[[^\]\n]*\])\(([^)\s]+)\)")
LINK = re.compile(r"(?<!!)\[([^\]\n]+)\]\(([^)\s]+)\)")
_LANGUAGES = {".py": "python", ".c": "c", ".h": "c", ".rs": "rust", ".toml": "toml", ".cu": "cuda", ".yml": "yaml"}


def links(text: str) -> Iterator[str]:
    """Give the targets of the links that are no addresses, outside code."""
    text = re.sub(r"^(```+).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)
    for _, target in LINK.findall(re.sub(r"`[^`\n]*`", lambda code: "x" * len(code[0]), text)):
        if not re.match(r"[a-z]+:", target):
            yield target


def target_of(page: Path, target: str) -> Path | None:
    """Give the file or folder that a link from a page of the repository leads to; None if it stays on the page."""
    path = target.partition("#")[0]
    return (page.parent / path).resolve() if path else None


def shown(path: Path) -> str:
    """Give the path on the site, relative to docs/, of a file or folder of the repository."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    relative = path.relative_to(ROOT).as_posix()
    if path.suffix == ".py" and f"ravine.{path.stem}" in modules() and path.parent == ROOT / "python/ravine":
        return f"api/{path.stem}.md"
    if path.is_dir():
        return f"source/{relative}/index.md"
    return f"source/{relative}" if path.suffix == ".md" else f"source/{relative}.md"


def listing(path: Path) -> str:
    """Show a file or folder of the repository as a page."""
    relative = path.relative_to(ROOT).as_posix()
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file())
        return "\n".join([f"# {relative}", "", *(f"- [{file.name}]({file.name})" for file in files)]) + "\n"
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return IMAGE.sub(lambda image: f"{image[1]}({_from(path, image[2])})", text)
    return f"---\nsearch: {{exclude: true}}\n---\n\n# {relative}\n\n{_code(path, text)}\n"


def _from(page: Path, target: str) -> str:
    """Give the way on the site from a page to a picture in docs/."""
    return os.path.relpath(shown((page.parent / target).resolve()), Path(shown(page)).parent)


def _code(path: Path, text: str) -> str:
    return f"````{_LANGUAGES.get(path.suffix, 'text')}\n{text}\n````"


# Blocks of other files

BLOCK = re.compile(r"^<!-- (\w+) of (\S+) -->$", re.MULTILINE)


def include(text: str) -> str:
    """Replace ``<!-- NAME of FILE -->`` by what stands between ``<!-- NAME -->`` and ``<!-- /NAME -->`` in the file.

    ``<!-- code of FILE -->`` is the whole file as code.
    """

    def block(found: re.Match[str]) -> str:
        name, file = found.groups()
        source = (ROOT / file).read_text(encoding="utf-8")
        if name == "code":
            return _code(Path(file), source)
        part = re.search(rf"^<!-- {name} -->\n(.*?)^<!-- /{name} -->$", source, re.DOTALL | re.MULTILINE)
        assert part is not None, f"{file} has no <!-- {name} -->"
        # Its links are relative to that file.
        up = Path(*[".."] * len((DOCS / "page.md").relative_to(ROOT).parts[:-1]), Path(file).parent)
        return LINK.sub(lambda link: f"[{link[1]}]({_moved(link[2], up)})", part[1])

    return BLOCK.sub(block, text)


def _moved(target: str, up: Path) -> str:
    return target if re.match(r"[a-z]+:|#", target) else (up / target).as_posix()


FILE = re.compile(r"(?<!\[)`((?:benches|examples|python|rust|tests)/[\w./-]+)`")
TEST = re.compile(r"`(?:(tests/\w+\.py)::)?(test_\w+)`")


def filled(name: str, text: str) -> str:
    """Give a page's text with what is generated in its place, and the tests and files that it names as links."""
    made = {"rules.md": {"registry": registry, "rules": rules}, "conventions.md": {"conventions": conventions}}
    for marker, make in made.get(name, {}).items():
        text = text.replace(f"<!-- {marker} -->", make())
    text = include(text)
    if not (DOCS / name).exists():
        return text
    text = TEST.sub(lambda test: f"[`{test[2]}`](../{test[1] or 'tests/test_errata.py'})", text)
    return FILE.sub(lambda file: f"[`{file[1]}`](../{file[1]})" if (ROOT / file[1]).exists() else file[0], text)
