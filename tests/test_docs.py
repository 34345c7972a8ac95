"""What the documentation says is so: every example runs, every public name is explained, the stub is the extension."""

import ast
import doctest
import functools
import importlib.util
import inspect
import pkgutil
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import ravine as rv
from benches import draw_adamw
from ravine import _core
from tests.conftest import as_arguments

ROOT = Path(__file__).parent.parent
#: Modules for a library that need not be there, by the library; without it they cannot be looked at.
ADAPTERS = {"torch": "ravine.torch", "thinc": "ravine.thinc"}
MISSING = {module for library, module in ADAPTERS.items() if importlib.util.find_spec(library) is None}
MODULES = {
    name: importlib.import_module(name)
    for name in ["ravine", *(m.name for m in pkgutil.walk_packages(rv.__path__, "ravine."))]
    if name not in {"ravine._core", *MISSING}
}

every_module = pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)


# Examples


def examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    for module in MODULES.values():
        libraries = {name: importlib.import_module(name) for name, of in ADAPTERS.items() if of not in MISSING}
        found = finder.find(module, globs={"np": np, "rv": rv, "ravine": rv, **libraries})
        yield from (test for test in found if test.examples)


EXAMPLES = {test.name: test for test in examples()}


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_every_example_in_a_docstring_runs(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    with np.printoptions(precision=8, suppress=False, threshold=1000, linewidth=75):
        failed, tried = runner.run(example, out=said.append)
    assert failed == 0, "".join(said)
    assert tried > 0


def python_blocks(path):
    """The fenced blocks of a Markdown file, each padded so that a traceback names the file's own lines."""
    text = path.read_text(encoding="utf-8")
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield "\n" * text[: block.start(1)].count("\n") + block[1]


PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
#: Pages that show no code of their own, and why.
WITHOUT_CODE = {
    "bits.md": "each line names its test",
    "c.md": "shows C, which tests/test_capi.py compiles and runs",
    "performance.md": "figures",
    "rules.md": "made from the registry",
}


def run_blocks(page):
    blocks = list(python_blocks(page))
    assert bool(blocks) != (page.name in WITHOUT_CODE), f"{page.name} has {len(blocks)} blocks"
    namespace = {"__name__": "__page__"}
    for block in blocks:
        exec(compile(block, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Where CuPy is installed without a GPU, the page is read as where it is not.
    monkeypatch.setitem(sys.modules, "cupy", None)
    run_blocks(page)


@pytest.mark.parametrize("page", ["gpu.md", "faq.md"])
def test_pages_that_speak_of_gpus_run_on_one(gpu, page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_blocks(ROOT / "docs" / page)


def test_blocks_are_found_with_their_line_numbers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n```python\na = 1\n```\n\n```sh\nls\n```\n```python\nb = a\n```\n")
    assert list(python_blocks(page)) == ["\n\n\na = 1\n", "\n" * 10 + "b = a\n"]


# Pages. `make docs` is strict besides; it is not part of `make test`, because what it installs is as large as the rest.

sys.path.insert(0, str(ROOT / "docs/tools"))
tools = importlib.import_module("pages")
sys.path.remove(str(ROOT / "docs/tools"))
MARKDOWN = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]


def anchors(text):
    """The anchors of a page's headings, as GitHub and mkdocs make them for what we write."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


@functools.cache
def shown(page):
    """A page with what it includes: that of the rules takes a second."""
    return tools.filled(page.name, page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for link in tools.links(shown(page)):
        target, anchor = tools.target_of(page, link) or page, link.partition("#")[2]
        assert target.exists(), link
        assert not anchor or anchor in anchors(shown(target)), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    for file, name in re.findall(r"`(?:(tests/\w+\.py)::)?(test_\w+)`", text):
        source = (ROOT / (file or "tests/test_errata.py")).read_text(encoding="utf-8")
        assert re.search(rf"^def {name}\(", source, re.MULTILINE), f"{file}::{name}"


def test_every_erratum_that_has_a_test_is_in_the_list():
    page = (ROOT / "docs/conventions.md").read_text(encoding="utf-8")
    tests = re.findall(r"^def (test_\w+)", (ROOT / "tests/test_errata.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name in tests if f"`{name}`" not in page] == []


def test_every_page_is_in_the_navigation():
    listed = re.findall(r"^  - (?:.+: )?(\w+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(page.name for page in ROOT.glob("docs/*.md"))


def test_the_reference_has_every_public_module_and_name():
    pages = tools.reference()
    for name, module in MODULES.items():
        if name == "ravine":  # what it exports is the others', see below
            continue
        short = f"api/{name.removeprefix('ravine.')}.md"
        if excused(name, tools.INTERNAL):
            assert short not in pages
        else:
            assert f"\n::: {name}\n" in pages[short]
            assert tools.public(name) == list(module.__all__)
    for name in MISSING:
        assert f"api/{name.removeprefix('ravine.')}.md" in pages


def test_what_the_reference_leaves_out_is_no_part_of_the_package():
    exported = {getattr(rv, name) for name in rv.__all__ if name != "__version__"}
    assert [item for item in exported if excused(getattr(item, "__module__", "") or "", {*tools.INTERNAL})] == []


def test_the_page_on_rules_has_every_rule_class_and_number():
    text = tools.filled("rules.md", (ROOT / "docs/rules.md").read_text(encoding="utf-8"))
    for rule, about in _core.rules().items():
        assert f"Rule `{rule}`" in text
        numbers = [name for name, kind in about["hyperparameters"].items() if kind != "switch"]
        assert [name for name in numbers if f"| {_core.symbol(name)} |" not in text] == []
    classes = {item for item in vars(rv).values() if inspect.isclass(item) and issubclass(item, rv.Optimizer)}
    assert classes - {rv.Optimizer} == {*tools.CLASSES}
    assert tools.VARIANTS.keys() <= {*tools.CLASSES}


def test_the_times_in_the_readme_are_those_of_the_record():
    cases = draw_adamw.read(ROOT / "benches/record/adamw-2-threads.md")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    _, _, rest = text.partition("<!-- rows -->\n")
    assert rest.partition("<!-- /rows -->")[0].splitlines() == list(draw_adamw.table(cases))


def test_what_is_included_is_the_file_s():
    text = tools.filled("c.md", (ROOT / "docs/c.md").read_text(encoding="utf-8"))
    assert (ROOT / "examples/c/train.c").read_text(encoding="utf-8") in text
    figures = tools.filled("performance.md", (ROOT / "docs/performance.md").read_text(encoding="utf-8"))
    assert "| 10 parameters |" in figures
    assert "](../benches/record)" in figures


# Docstrings


def public(module):
    """The module's public functions and classes of its own, by name."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [name for name, item in vars(module).items() if getattr(item, "__module__", None) == module.__name__]
    items = {name: getattr(module, name) for name in names if not name.startswith("_")}
    return {
        f"{module.__name__}.{name}": item
        for name, item in items.items()
        if inspect.isclass(item) or inspect.isfunction(item)
    }


PUBLIC = {
    name: item
    for module in MODULES.values()
    for name, item in public(module).items()
    if name.startswith(item.__module__)
}

every_public = pytest.mark.parametrize("name, item", PUBLIC.items(), ids=PUBLIC)

#: What needs no runnable example, and why.
WITHOUT_EXAMPLE = {
    "ravine.optimizers.Optimizer": "a base class, not made by itself; its methods have examples",
    "ravine.optimizers.Options": "a list of keyword arguments; the optimizers' examples use them",
    "ravine.config.num_threads": "in set_num_threads's example",
    "ravine.config.show_config": "prints what differs from machine to machine",
    "ravine.config.get_include": "in wheels only",
    "ravine.config.get_library": "in wheels only",
    "ravine.checkpoint": "behind Optimizer.save and Optimizer.load, whose examples show it",
    "ravine.gradient_check.GradientCheck": "a result; check_gradient's example shows it",
    "ravine.hessian.Eigenvalues": "a result; extreme_eigenvalues's example shows it",
    "ravine.hessian.SpectrumDensity": "a result; spectrum_density's example shows it",
    "ravine.hessian.TraceEstimate": "a result; trace's example shows it",
    "ravine.diagnose.CriticalPoint": "a result; critical_point's example shows it",
    "ravine.diagnose.Escape": "a result; escape_saddle's example shows it",
    "ravine.diagnose.StepReport": "a result; step_report's example shows it",
    "ravine.diagnose.Sharpness": "a result; sharpness's example shows it",
    "ravine.noise.NoiseScale": "a result; noise_scale's example shows it",
    "ravine.activations.ActivationReport": "a result; activation_report's example shows it",
    "ravine.activations.LayerReport": "part of a result",
    "ravine.nn.Layer": "a base class, not made by itself",
    "ravine.backends": "internal",
    "ravine.cuda": "internal",
    "ravine.bench": "behind the command line",
    "ravine.objective": "internal",
    "ravine.line_search": "internal",
    "ravine.descent": "internal",
    "ravine.report": "internal",
    "ravine.whole": "internal",
    "ravine.torch.binding": "internal",
    "ravine.torch.optimizer": "internal",
    "ravine.history.Curve": "a result; History's examples show it",
    "ravine.lr_range.LearningRateRange": "a result; lr_range_test's example shows it",
}

#: Whose arguments are explained elsewhere, and where.
WITHOUT_ARGS = {
    "ravine.functional": "the module's docstring explains p, g, step, states and options of all functions at once",
    "ravine.init": "the module's docstring and uniform_fan_in's explain shape, rng, dtype and gain for all",
    "ravine.trees": "the one line speaks of them",
    "ravine.backends": "internal",
    "ravine.cuda": "internal",
    "ravine.bench": "behind the command line",
    "ravine.objective": "internal",
    "ravine.line_search": "internal",
    "ravine.descent": "internal",
    "ravine.whole": "internal",
    "ravine.torch.binding": "internal",
    "ravine.torch.optimizer": "internal",
    "ravine.history.Curve": "a result; its two fields are in the one line",
    "ravine.lr_range.LearningRateRange": "a result, made by lr_range_test; its attributes are listed",
    "ravine.optimizers.Optimizer": "a base class, not made by users",
    "ravine.checkpoint": "behind Optimizer.save and Optimizer.load, which list them",
    "ravine.gradient_check.GradientCheck": "a result, made by check_gradient; its attributes are listed",
    "ravine.hessian.Eigenvalues": "a result, made by extreme_eigenvalues; its attributes are listed",
    "ravine.hessian.SpectrumDensity": "as Eigenvalues",
    "ravine.hessian.TraceEstimate": "as Eigenvalues",
    "ravine.diagnose.CriticalPoint": "as Eigenvalues",
    "ravine.diagnose.Escape": "as Eigenvalues",
    "ravine.diagnose.StepReport": "as Eigenvalues",
    "ravine.diagnose.Sharpness": "as Eigenvalues",
    "ravine.noise.NoiseScale": "as Eigenvalues",
    "ravine.activations.ActivationReport": "as Eigenvalues",
    "ravine.activations.LayerReport": "as Eigenvalues",
    "ravine.schedules.Schedule": "made by the module's functions, not by hand",
    "ravine.schedules.constant": "the one line speaks of it",
    "ravine.nn.Layer": "a base class, not made by itself",
    "ravine.nn.ReLU": "takes none; the base class has **params",
    "ravine.nn.Tanh": "as ReLU",
    "ravine.nn.Sigmoid": "as ReLU",
    "ravine.sequential.Sequential": "the one line speaks of the layers",
    "ravine.nn.WeightNormLinear": "those of Linear, it says",
    "ravine.losses.mean_squared_error": "those of squared_error, it says",
}


def excused(name, table):
    return any(name == entry or name.startswith(f"{entry}.") for entry in table)


@every_module
def test_every_module_says_what_it_is_and_what_is_public(module):
    assert module.__doc__
    assert "__all__" in vars(module), "which names are public?"
    assert list(module.__all__) == sorted(module.__all__, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


@every_public
def test_every_public_name_has_a_docstring(name, item):
    assert item.__doc__, name
    if inspect.isclass(item):
        own = {key: value for key, value in vars(item).items() if not key.startswith("_")}
        methods = [key for key, value in own.items() if inspect.isfunction(value) or isinstance(value, property)]
        assert [key for key in methods if not inspect.getdoc(getattr(item, key))] == []


@every_public
def test_every_public_function_and_class_has_a_runnable_example(name, item):
    assert ">>>" in item.__doc__ or excused(name, WITHOUT_EXAMPLE)


def test_every_public_constant_is_explained_by_a_comment_above_it():
    for module in MODULES.values():
        for name in module.__all__:
            item, source = getattr(module, name), inspect.getsource(module)
            if not (callable(item) or inspect.ismodule(item) or name.startswith("__") or module is rv):
                assert re.search(rf"^#: .*\n{name}\b", source, re.MULTILINE), name


def parameters(item):
    try:
        signature = inspect.signature(item)
    except ValueError:  # a builtin's
        return []
    return [p.lstrip("*") for p in signature.parameters if p not in ("self", "cls")]


def documented(docstring):
    """The names in the Args section; "a, b: …" documents both."""
    section = re.search(r"^Args:\n((?:    .*\n?|\n)+)", inspect.cleandoc(docstring), re.MULTILINE)
    entries = re.findall(r"^    (\*{0,2}\w+(?:, \*{0,2}\w+)*):", section[1], re.MULTILINE) if section else []
    return {name.lstrip("*") for entry in entries for name in entry.split(", ")}


def undocumented(item):
    known = documented(item.__doc__)
    if item is rv.AdamW:
        assert "those of :class:`Adam`" in item.__doc__
        known |= documented(rv.Adam.__doc__)
    return [p for p in parameters(item) if p not in known]


@every_public
def test_every_argument_is_documented(name, item):
    assert undocumented(item) == [] or excused(name, WITHOUT_ARGS)


def there(table):
    """Those of a table's entries that can be looked at."""
    return [entry for entry in table if not entry.startswith(tuple(f"{module}." for module in MISSING))]


def test_the_tables_excuse_only_what_needs_it():
    guilty = [name for name, item in PUBLIC.items() if undocumented(item)]
    assert [entry for entry in there(WITHOUT_ARGS) if not any(excused(name, [entry]) for name in guilty)] == []
    guilty = [name for name, item in PUBLIC.items() if ">>>" not in item.__doc__]
    assert [entry for entry in there(WITHOUT_EXAMPLE) if not any(excused(name, [entry]) for name in guilty)] == []


@every_public
def test_no_argument_is_documented_that_does_not_exist(name, item):
    typed_dict = inspect.isclass(item) and issubclass(item, dict)
    assert documented(item.__doc__) <= set(item.__annotations__ if typed_dict else parameters(item))


def test_functions_have_the_arguments_of_their_rules():
    for name in rv.functional.__all__:
        if name == "adamw_":
            continue  # adam_ with a decay on by default; its switches are adam_'s
        rule = _core.rules()[name.rstrip("_")]
        given = parameters(getattr(rv.functional, name))
        hyper = as_arguments(dict.fromkeys(h for h in rule["hyperparameters"] if h != "weight_decay"))
        assert [h for h in hyper if h not in given] == [], name
        assert [s for s in rule["states"] if s not in given] == [], name


def test_every_rule_has_a_function():
    assert {f"{rule}_" for rule in _core.rules()} <= set(rv.functional.__all__)


def test_the_version_is_the_manifests():
    manifest = (ROOT / "Cargo.toml").read_text(encoding="utf-8")
    assert re.search(r'^version = "(.*)"', manifest, re.MULTILINE)[1] == rv.__version__


# The stub

STUB = ast.parse((ROOT / "python/ravine/_core.pyi").read_text(encoding="utf-8"))


def stub_names(body):
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.AnnAssign):
            yield node.target.id


def extension_names(item):
    return {name for name in vars(item) if not name.startswith("__")}


def test_the_stub_has_the_names_of_the_extension():
    assert {*stub_names(STUB.body)} - {"__version__"} == extension_names(_core)
    assert isinstance(_core.__version__, str)


CLASSES = {node.name: node for node in STUB.body if isinstance(node, ast.ClassDef)}


@pytest.mark.parametrize("name", CLASSES)
def test_the_stubs_classes_have_the_members_of_the_extensions(name):
    members = {*stub_names(CLASSES[name].body)} - {"__new__", "__enter__", "__exit__"}
    assert members == extension_names(getattr(_core, name))


FUNCTIONS = {node.name: (node, _core) for node in STUB.body if isinstance(node, ast.FunctionDef)} | {
    f"{owner}.{node.name}": (node, getattr(_core, owner))
    for owner, body in CLASSES.items()
    for node in body.body
    if isinstance(node, ast.FunctionDef) and not node.decorator_list and node.name != "__new__"
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_stubs_functions_have_the_arguments_of_the_extensions(name):
    node, owner = FUNCTIONS[name]
    arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    found = inspect.signature(getattr(owner, node.name)).parameters.values()
    assert arguments == [p.name for p in found if p.kind is not p.VAR_POSITIONAL]


def test_the_extension_is_typed_and_its_functions_documented():
    assert (ROOT / "python/ravine/py.typed").exists()
    assert [name for name in extension_names(_core) if not getattr(_core, name).__doc__] == []
