"""The house rules that a machine can check: imports go down, files stay small, only the command line speaks."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "gradrecipes"

FLOORS = {
    "core": 0,
    "compat": 1,
    **dict.fromkeys(("gradients", "initializers", "layers", "regularizers", "schedules", "plots", "diagnosis"), 1),
    **dict.fromkeys(("training", "report"), 2),
    **dict.fromkeys(("callbacks", "probes"), 3),
    **dict.fromkeys(("rescue", "tuning"), 4),
    "studies": 5,  # a study may be spread over the machines of a search
    **dict.fromkeys(("recipes", "doctor"), 6),
    "demo": 7,
    "cli": 8,
    "__main__": 9,
}
# On one floor, and still in one direction: a callback may use what a probe measures.
BESIDE = {("callbacks", "probes"), *((part, "compat") for part in ("gradients", "initializers", "regularizers"))}
INDEX = "gradrecipes"  # gradrecipes/__init__.py: names every floor, lazily, so only the highest may use it
LONGEST_FILE = 400
LARGEST_FOLDER = 20  # files; rules/ apart
NUMERICS = ("numpy", "scipy")
PRIVATE = re.compile(r"keras[.]src|tensorflow[.]python|tf[.]__internal__")
UNFINISHED = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME)\b")
TEXT = {".py", ".md", ".toml", ".txt", ".ipynb", ".j2", ".html", ".css", ".yml", ".yaml", ".json"}


@dataclass(frozen=True)
class Import:
    module: str
    line: int
    inside_function: bool


# -- the walker ------------------------------------------------------------------------------------
def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """Return the subpackage (or top-level module) of a gradrecipes module; the index itself for the bare package."""
    return module.split(".")[1] if "." in module else INDEX


def imports_in(tree: ast.AST, package: str) -> Iterator[Import]:
    """Yield what a file imports, functions included; what stands under TYPE_CHECKING is for type checkers only."""
    yield from _imports(tree, package, inside_function=False)


def _imports(node: ast.AST, package: str, inside_function: bool) -> Iterator[Import]:
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        for child in node.orelse:
            yield from _imports(child, package, inside_function)
        return
    for module in _imported(node, package):
        yield Import(module, node.lineno, inside_function)
    inside_function = inside_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        yield from _imports(child, package, inside_function)


def _imported(node: ast.AST, package: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        module = ".".join([*above, *([node.module] if node.module else [])])
        if module != INDEX:
            return [module]
        return [f"{INDEX}.{alias.name}" if alias.name in FLOORS else INDEX for alias in node.names if _is_a_name(alias)]
    if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
        return [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
    return []


def _is_a_name(alias: ast.alias) -> bool:
    return alias.name != "__version__"  # a plain string, harmless on every floor


def complaints(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """Return what in a file breaks the rules of import, and what speaks or exits outside the command line."""
    part = part_of(module)
    if part == INDEX:
        return []
    if part not in FLOORS:
        return [f"{module}: {part!r} has no floor; give it one in the table of this test and in the design"]
    tree = ast.parse(source)
    package = module if is_package else module.rpartition(".")[0]
    found = []
    for imported in imports_in(tree, package):
        where = f"{module}:{imported.line} imports {imported.module}"
        top = imported.module.split(".")[0]
        if top == INDEX:
            found += _floor_complaints(part, part_of(imported.module), where)
        else:
            found += _foreign_complaints(part, top, imported.inside_function, where)
    if part != "cli":
        found += [f"{module}:{line} calls {call}: only cli prints or exits" for line, call in _speaking(tree)]
    return found


def _floor_complaints(part: str, target: str, where: str) -> list[str]:
    if target == part:
        return []
    if target == INDEX:
        return [] if part == "cli" else [f"{where}: the index names every floor; import from the module itself"]
    if target not in FLOORS:
        return [f"{where}: {target!r} has no floor"]
    if part == "diagnosis" and target != "core":
        return [f"{where}: diagnosis imports core only"]
    if FLOORS[target] >= FLOORS[part] and (part, target) not in BESIDE:
        return [f"{where}: floor {FLOORS[part]} may not import floor {FLOORS[target]}; imports go down"]
    return []


def _foreign_complaints(part: str, top: str, inside_function: bool, where: str) -> list[str]:
    if part in ("core", "diagnosis") and top not in (*NUMERICS, *sys.stdlib_module_names):
        return [f"{where}: {part} needs numpy, scipy and the standard library only"]
    if top in ("keras_tuner", "kerastuner") and part != "tuning":
        return [f"{where}: only tuning imports keras_tuner"]
    if top == "matplotlib" and not inside_function:
        return [f"{where}: matplotlib is imported when something is drawn, inside the function"]
    return []


def _speaking(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {
            *("print", "exit", "quit", "sys.exit", "os._exit", "SystemExit"),
            *("sys.stdout.write", "sys.stderr.write"),
        }:
            yield node.lineno, ast.unparse(node.func)
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name) and node.exc.id == "SystemExit":
            yield node.lineno, "SystemExit"
        elif isinstance(node, ast.ImportFrom) and node.module == "sys":
            yield from ((node.lineno, "sys.exit") for alias in node.names if alias.name == "exit")


# -- the house ---------------------------------------------------------------------------------------
def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", modules(), ids=module_of)
def test_imports_go_down_and_only_the_command_line_speaks(path):
    assert complaints(path.read_text(), module_of(path), is_package=path.name == "__init__.py") == []


def test_every_subpackage_has_a_floor():
    parts = {part_of(module_of(path)) for path in modules()} - {INDEX}
    assert parts <= set(FLOORS)
    assert "core" in parts


def test_the_lazy_index_imports_nothing_at_once():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    at_once = {imported.module for imported in imports_in(tree, INDEX) if not imported.inside_function}
    assert {module.split(".")[0] for module in at_once} <= sys.stdlib_module_names


def test_no_source_file_is_too_long():
    sources = [*modules(), *(ROOT / "recipes").rglob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_no_folder_is_too_large():
    folders = {path.parent for path in modules() if path.parent.name != "rules"}
    sizes = {str(folder.relative_to(ROOT)): len(list(folder.glob("*.py"))) for folder in folders}
    assert {name: size for name, size in sizes.items() if size > LARGEST_FOLDER} == {}


def test_private_modules_of_keras_and_tensorflow_are_imported_in_compat_only():
    others = [path for path in modules() if part_of(module_of(path)) not in ("compat", "tuning")]
    assert [module_of(path) for path in others if PRIVATE.search(path.read_text())] == []


def test_nothing_is_left_unfinished():
    folders = ("gradrecipes", "recipes", "notebooks", "benchmarks", "tests", ".ci")
    files = [path for path in ROOT.glob("*") if path.suffix in TEXT or path.name == "Makefile"]
    files += [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in TEXT]
    marked = [str(path.relative_to(ROOT)) for path in files if UNFINISHED.search(path.read_text(errors="replace"))]
    assert marked == []


def test_no_circle_of_files():
    """Imports inside functions and those for type checkers count: a file in a circle cannot be read by itself."""
    known = {module_of(path) for path in modules()} - {INDEX}
    graph = {module_of(path): files_imported(path, known) for path in modules() if module_of(path) != INDEX}
    assert circles(graph) == []


def test_a_monitor_reads_nothing_that_only_a_guard_needs():
    path_of = {module_of(path): path for path in modules()}
    reads, left = set(), ["gradrecipes.callbacks.gradient_monitor"]
    while left:
        module = left.pop()
        if module not in reads:
            reads.add(module)
            left += files_imported(path_of[module], path_of.keys() - {INDEX}, at_once=True)
    guards = [f"gradrecipes.{part}" for part in ("gradients.clipp", "gradients.skipping", "training.recovery")]
    assert sorted(module for module in reads if module.startswith(tuple(guards))) == []
    assert "gradrecipes.training.step.optimizer_hook" in reads


def files_imported(path: Path, known: set[str], *, at_once: bool = False) -> set[str]:
    """Return the modules of the package that a file imports anywhere, or at once, the lazy index apart."""
    module = module_of(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    tree = ast.parse(path.read_text())
    for node in tree.body if at_once else ast.walk(tree):
        for target in _imported(node, package):
            names = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            inner = {f"{target}.{name}" for name in names} & known
            found |= inner or {target} & known
    return found - {module}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other: what cannot be put in order."""
    left = {module: set(targets) for module, targets in graph.items()}
    while ready := [module for module, targets in left.items() if not targets & left.keys()]:
        for module in ready:
            del left[module]
    while ready := [module for module in left if not any(module in targets for targets in left.values())]:
        for module in ready:
            del left[module]
    return [sorted(left)] if left else []


# -- the walker itself ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("module", "source", "words"),
    [
        ("gradrecipes.core.trace", "import gradrecipes.callbacks.gradient_monitor", "floor 0 may not import floor 3"),
        ("gradrecipes.core.trace", "from gradrecipes.training import snapshot", "floor 0 may not import floor 2"),
        ("gradrecipes.core.trace", "from ..training import snapshot", "floor 0 may not import floor 2"),
        ("gradrecipes.core.trace", "from .. import training", "floor 0 may not import floor 2"),
        ("gradrecipes.core.trace", "def f():\n    from gradrecipes.cli import main", "trace:2 imports gradrecipes.cli"),
        ("gradrecipes.core.trace", "class A:\n    async def f(self):\n        import keras", "standard library only"),
        ("gradrecipes.core.trace", "try:\n    import tensorflow\nexcept ImportError: pass", "standard library only"),
        ("gradrecipes.core.trace", "import importlib\nimportlib.import_module('gradrecipes.report')", "may not import"),
        ("gradrecipes.core.trace", "if TYPE_CHECKING:\n    pass\nelse:\n    import gradrecipes.cli", "may not import"),
        ("gradrecipes.gradients.clipping", "from gradrecipes.plots import curves", "floor 1 may not import floor 1"),
        ("gradrecipes.probes.data", "from gradrecipes.callbacks import doctor", "floor 3 may not import floor 3"),
        ("gradrecipes.doctor", "from gradrecipes.recipes import monitoring", "floor 6 may not import floor 6"),
        ("gradrecipes.recipes.practices", "import gradrecipes.doctor", "floor 6 may not import floor 6"),
        ("gradrecipes.recipes.practices", "import gradrecipes as gr", "the index names every floor"),
        ("gradrecipes.recipes.practices", "from gradrecipes import Trace", "the index names every floor"),
        ("gradrecipes.diagnosis.rules", "import pandas", "diagnosis needs numpy, scipy and the standard library only"),
        ("gradrecipes.diagnosis.rules", "import gradrecipes.plots", "diagnosis imports core only"),
        ("gradrecipes.recipes.practices", "import keras_tuner", "only tuning imports keras_tuner"),
        ("gradrecipes.plots.curves", "from matplotlib import pyplot", "inside the function"),
        ("gradrecipes.plots.curves", "print('hello')", "only cli prints or exits"),
        ("gradrecipes.plots.curves", "import sys\nsys.exit(1)", "curves:2 calls sys.exit"),
        ("gradrecipes.plots.curves", "from sys import exit", "only cli prints or exits"),
        ("gradrecipes.plots.curves", "raise SystemExit", "only cli prints or exits"),
        ("gradrecipes.plots.curves", "raise SystemExit(2)", "only cli prints or exits"),
        ("gradrecipes.attic.box", "", "'attic' has no floor"),
        ("gradrecipes.cli.main", "import gradrecipes.attic", "'attic' has no floor"),
    ],
)
def test_the_walker_catches_a_planted_violation(module, source, words):
    found = complaints(source, module)
    assert len(found) == 1
    assert words in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "gradrecipes.core.trace",
            "import numpy as np\nfrom gradrecipes.core.trace.trace_file import Table\nfrom . import event",
        ),
        ("gradrecipes.core.trace", "if TYPE_CHECKING:\n    from gradrecipes.cli import main"),
        ("gradrecipes.core.trace", "import typing\nif typing.TYPE_CHECKING:\n    import keras"),
        ("gradrecipes.callbacks.guard", "import keras\nfrom gradrecipes.training import privates"),
        ("gradrecipes.report.html", "from gradrecipes import __version__\nfrom gradrecipes.plots import curves"),
        ("gradrecipes.tuning.spaces", "import keras_tuner"),
        ("gradrecipes.callbacks.doctor", "from gradrecipes.probes import noise_scale"),
        ("gradrecipes.plots.curves", "def plot():\n    from matplotlib import pyplot"),
        ("gradrecipes.plots.curves", "figure.print()\nself.exit()"),
        ("gradrecipes.cli.main", "import sys\nimport gradrecipes as gr\nprint(1)\nsys.exit(1)"),
        ("gradrecipes", "import gradrecipes.cli"),
    ],
)
def test_the_walker_lets_good_files_be(module, source):
    assert complaints(source, module) == []


def test_a_circle_is_found_and_what_only_hangs_on_it_is_not_named():
    graph = {"top": {"a"}, "a": {"b"}, "b": {"c"}, "c": {"a", "base"}, "base": set()}
    assert circles(graph) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_a_package_resolves_its_own_relative_imports():
    assert complaints("from .rules import find", "gradrecipes.diagnosis", is_package=True) == []
    assert len(complaints("from ..rescue import trial", "gradrecipes.diagnosis", is_package=True)) == 1
