"""The house's laws, read from the source: who may import whom, how long things are, what a public name shows.

CONTRIBUTING.md says why. Every module of `jsage` is parsed, none is imported.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

# A room (a folder, or one file) imports lower floors only; its files may import one another without circles.
FLOORS = {
    "typing": 1,
    "_internal": 2,
    "losses": 2,
    "train": 3,
    "metrics": 3,
    "graph": 3,
    "data": 4,
    "blocks": 4,
    "sampling": 5,
    "nn": 5,
    "infer": 6,
    "serving": 6,
    "parallel": 7,
    "explain": 7,
    "relational": 7,
    "recipes": 8,
    "__init__": 9,
}
# Packages that only these rooms may import, at any depth. No name: nowhere in the library.
ONLY_IN = {
    "flax": {"nn"},
    "optax": {"train", "losses", "recipes"},
    "orbax": {"train"},
    "rich": {"recipes"},
    "pickle": set(),
}
# Not even when jsage is imported: a function that needs one imports it itself.
LAZY = {"duckdb", "matplotlib", "pyarrow", "pymetis", "scipy", "sklearn", "torch"}
# Training is for any model: it knows no graph.
KNOWS_ONLY = {"train": {"typing", "_internal"}, "losses": {"typing"}}
# Sampling is about ids: it reads no rows.
NO_WORDS = {"sampling.neighbors": {"features", "labels"}, "sampling.draws": {"graph", "features", "labels"}}
PASS_THROUGH = {"graph.graph.from_edges"}  # **edge_data: named arrays, not options

MODULE_LINES, FUNCTION_LINES, PARAMETERS = 400, 40, 6


class Module(NamedTuple):
    """One file: its dotted name below `jsage`, its text and its syntax tree."""

    name: str
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        return self.name.split(".")[0]


class Import(NamedTuple):
    """One imported name."""

    target: str  # dotted, absolute
    at_top: bool  # runs when the module is imported
    line: int


def parse(name: str, text: str) -> Module:
    return Module(name, text, ast.parse(text))


def modules(folder: Path) -> list[Module]:
    names = {path: path.relative_to(folder).with_suffix("").parts for path in sorted(folder.rglob("*.py"))}
    return [parse(".".join(parts), path.read_text()) for path, parts in names.items()]


def imports(module: Module) -> Iterator[Import]:
    inside = {id(child) for node in ast.walk(module.tree) if is_function(node) for child in ast.walk(node)}
    package = ["jsage", *module.name.split(".")[:-1]]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, node.module] if node.module else base)
            # `from jsage import graph` names a module, `from jsage.graph import Graph` something in it
            targets = [f"jsage.{alias.name}" for alias in node.names] if source == "jsage" else [source]
        else:
            continue
        yield from (Import(target, id(node) not in inside, node.lineno) for target in targets)


def is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def functions(tree: ast.AST) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def public(tree: ast.Module | ast.ClassDef) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """The public functions and classes of a module, and their public methods with `__call__`."""
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_") and node.name != "__call__":
            continue
        yield node.name, node
        if isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{name}", member) for name, member in public(node))


def parameters(function: ast.FunctionDef) -> list[ast.arg]:
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [argument for argument in named if argument.arg not in ("self", "cls")]


def code_lines(module: Module, function: ast.FunctionDef) -> int:
    """Lines of a function, decorators included; blank lines, comments and docstrings left out."""
    start = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
    lines = set(range(start, (function.end_lineno or start) + 1))
    for inner in functions(function):
        first = inner.body[0]
        if ast.get_docstring(inner) is not None:
            lines -= set(range(first.lineno, (first.end_lineno or 0) + 1))
    text = module.text.splitlines()
    return sum(bool(text[line - 1].strip()) and not text[line - 1].lstrip().startswith("#") for line in lines)


def floor(name: str) -> int | None:
    return FLOORS.get(name.split(".")[0])


def check_floors(module: Module) -> Iterator[str]:
    own = floor(module.name)
    if own is None:
        yield f"has no floor: add {module.room!r} to FLOORS in tests/test_rooms.py, or move it into a room"
        return
    for target, _, line in imports(module):
        if not target.startswith("jsage."):
            continue
        other = target.removeprefix("jsage.")
        other = other if floor(other) is not None else "__init__"  # `from jsage import Graph`
        neighbor = other.split(".")[0] == module.room
        if not neighbor and (floor(other) or 0) >= own:
            yield f"line {line}: on floor {own} imports {target!r} of floor {floor(other)}: only lower floors"
        allowed = KNOWS_ONLY.get(module.room)
        if allowed is not None and not neighbor and other.split(".")[0] not in allowed:
            yield f"line {line}: imports {target!r}, but may know only {sorted(allowed)}"


def check_packages(module: Module) -> Iterator[str]:
    for target, at_top, line in imports(module):
        package = target.split(".")[0]
        if package in ONLY_IN and module.room not in ONLY_IN[package]:
            places = ", ".join(sorted(ONLY_IN[package])) or "no module of the library"
            yield f"line {line}: imports {package!r}, which belongs in {places}"
        if package in LAZY and at_top:
            yield f"line {line}: imports {package!r} at module level: import it in the function that needs it"
        if at_top and package not in {"jsage", *LAZY, *ONLY_IN, *declared(), *sys.stdlib_module_names}:
            yield f"line {line}: imports {package!r}, which is no dependency in pyproject.toml"


def check_words(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        word = getattr(node, "id", None) or getattr(node, "arg", None) or getattr(node, "attr", None)
        if word in NO_WORDS.get(module.name, ()):
            yield f"line {getattr(node, 'lineno', '?')}: speaks of {word!r}, which is not its business"
        if isinstance(node, ast.Global):
            yield f"line {node.lineno}: no global state: pass {', '.join(node.names)} as an argument"
    if re.search(r"\b(TODO|FIXME|XXX)\b", module.text):
        yield "has a TODO: do it, or file it as an issue"


def check_sizes(module: Module) -> Iterator[str]:
    length = len(module.text.splitlines())
    if length > MODULE_LINES:
        yield f"is {length} lines long: split it (at most {MODULE_LINES})"
    for function in functions(module.tree):
        lines, width = code_lines(module, function), len(parameters(function))
        if lines > FUNCTION_LINES:
            yield f"{function.name} has {lines} lines of code: at most {FUNCTION_LINES}"
        if width > PARAMETERS:
            yield f"{function.name} has {width} parameters: at most {PARAMETERS}"


def check_public(module: Module) -> Iterator[str]:
    if ast.get_docstring(module.tree) is None and module.text.strip():
        yield "has no docstring"
    for name, node in public(module.tree):
        doc = ast.get_docstring(node)
        if doc is None:
            yield f"{name} has no docstring"
        if isinstance(node, ast.ClassDef):
            continue
        if "." not in name and ">>>" not in (doc or ""):
            yield f"{name} has no runnable example: add a doctest ('>>>')"
        bare = [argument.arg for argument in parameters(node) if argument.annotation is None]
        bare += ["return"] if node.returns is None else []
        if bare:
            yield f"{name} has no annotation for {', '.join(bare)}"
        if node.args.kwarg and f"{module.name}.{name}" not in PASS_THROUGH:
            yield f"{name} takes **{node.args.kwarg.arg}: name the arguments"


Rule = Callable[[Module], Iterator[str]]
RULES: tuple[Rule, ...] = (check_floors, check_packages, check_words, check_sizes, check_public)


def declared() -> set[str]:
    """The packages that jsage depends on, by the name they are imported under."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        wanted = tomllib.load(file)["project"]["dependencies"]
    return {re.split(r"[-<>=~! \[]", requirement)[0] for requirement in wanted}


def complaints(module: Module, rules: tuple[Rule, ...] = RULES) -> list[str]:
    return [f"jsage.{module.name} {message}" for rule in rules for message in rule(module)]


LIBRARY = modules(ROOT / "jsage")
PROGRAMS = [module for room in ("experiments", "benchmarks") for module in modules(ROOT / room)]


@pytest.mark.parametrize("module", LIBRARY, ids=lambda module: module.name)
def test_a_module_keeps_the_laws(module: Module):
    found = complaints(module)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("module", PROGRAMS, ids=lambda module: module.name)
def test_a_program_keeps_its_size(module: Module):
    found = [f"{module.name} {message}" for message in check_sizes(module)]
    assert not found, "\n" + "\n".join(found)


def test_the_library_was_found():
    assert {"__init__", "typing"} <= {module.name for module in LIBRARY}


@pytest.mark.parametrize("room", sorted({module.room for module in LIBRARY if "." in module.name}))
def test_files_of_a_room_do_not_go_in_circles(room: str):
    lists = {module.name.removesuffix(".__init__") for module in LIBRARY if module.name.endswith("__init__")}
    edges = {
        module.name: {
            target.target.removeprefix("jsage.")
            for target in imports(module)
            if target.target.startswith(f"jsage.{room}.")
            and target.target.removeprefix("jsage.") not in lists
        }
        for module in LIBRARY
        if module.room == room and not module.name.endswith("__init__")
    }
    while free := {name for name, targets in edges.items() if not targets & edges.keys()}:
        edges = {name: targets for name, targets in edges.items() if name not in free}
    assert not edges, f"these import one another in a circle: {sorted(edges)}"


def test_a_room_has_a_list_of_its_names():
    """Files of a room import one another, not the list that imports them."""
    for module in (module for module in LIBRARY if not module.name.endswith("__init__")):
        for target, _, line in imports(module):
            inner = target.split(".")[1] if target.startswith("jsage.") else ""
            assert inner != module.room or target != f"jsage.{module.room}", (
                f"jsage.{module.name} line {line} imports its own room's list: import the file"
            )


GOOD = '''
"""A module without fault."""

from jsage.typing import PRNGKey


def halve(x: float) -> float:
    """Half of `x`.

    >>> halve(2.0)
    1.0
    """
    return x / 2
'''

BAD = {
    "no floor": ("utils", GOOD, r"utils has no floor: add 'utils'"),
    "upwards": (
        "graph.graph",
        "from jsage.sampling import sample_blocks",
        r"floor 3 imports 'jsage.sampling' of floor 5",
    ),
    "sideways": (
        "nn.norm",
        "import jsage.sampling.draws",
        r"floor 5 imports 'jsage.sampling.draws' of floor 5",
    ),
    "the whole house": ("graph", "from jsage import Graph", r"imports 'jsage.Graph' of floor 9"),
    "relative": ("sampling.walks", "from ..nn.conv import SAGEConv", r"imports 'jsage.nn.conv' of floor 5"),
    "out of a room": ("data.io", "from ..nn import conv", r"imports 'jsage.nn' of floor 5"),
    "in a function": ("graph", "def f():\n    from jsage import nn", r"imports 'jsage.nn' of floor 5"),
    "train knows a graph": (
        "train",
        "from jsage.graph import Graph",
        r"may know only \['_internal', 'ty",
    ),
    "flax": ("blocks.aggregate", "import flax.linen as nn", r"imports 'flax', which belongs in nn"),
    "optax": (
        "metrics",
        "def f():\n    import optax",
        r"imports 'optax', which belongs in losses, recipes, train",
    ),
    "orbax": ("graph", "import orbax.checkpoint", r"imports 'orbax', which belongs in train"),
    "rich": ("train", "from rich.progress import Progress", r"'rich', which belongs in recipes"),
    "pickle": ("data.io", "import pickle", r"'pickle', which belongs in no module"),
    "torch": ("data.io", "import torch", r"'torch' at module level"),
    "scipy": (
        "data.io",
        "try:\n    import scipy.sparse\nexcept ImportError:\n    pass",
        r"'scipy' at module level",
    ),
    "undeclared": ("data.io", "import pandas", r"'pandas', which is no dependency"),
    "sample reads rows": ("sampling.neighbors", "def f(features): ...", r"speaks of 'features'"),
    "attribute": ("sampling.neighbors", "x = data.labels", r"speaks of 'labels'"),
    "global": ("graph", "def f():\n    global seed, path", r"no global state: pass seed, path"),
    "to do": ("graph", "# TODO: later", r"has a TODO"),
    "long module": ("graph", "x = 1\n" * 401, r"is 401 lines long"),
    "long function": ("graph", "def f():\n" + "    x = 1\n" * 40, r"f has 41 lines of code"),
    "long method": ("nn.a", "class A:\n  def f(self):\n" + "    x = 1\n" * 40, r"f has 41 lines of code"),
    "many parameters": ("graph", "def f(a, b, c, d, *, e, f, g): ...", r"f has 7 parameters"),
    "no docstring": ("graph", "def f() -> int: ...", r"f has no docstring"),
    "no module docstring": ("graph", "x = 1", r"graph has no docstring"),
    "no method docstring": (
        "nn.a",
        "class A:\n  def __call__(self) -> int: ...",
        r"A.__call__ has no docstring",
    ),
    "no example": ("graph", 'def f() -> int:\n    """One."""', r"f has no runnable example"),
    "no annotation": ("graph", "def f(x, y: int) -> int: ...", r"f has no annotation for x$"),
    "no return": ("graph", "def f(x: int): ...", r"f has no annotation for return"),
    "pass-through": ("graph", "def f(**kwargs: int) -> int: ...", r"f takes \*\*kwargs"),
}


@pytest.mark.parametrize("case", BAD)
def test_the_checker_sees_a_bad_module(case: str):
    name, text, message = BAD[case]
    found = complaints(parse(name, text))
    assert any(re.search(message, line) for line in found), found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("graph", GOOD),
        ("nn.models", GOOD + "import flax.linen as nn\nfrom jsage.nn.conv import SAGEConv\n"),
        ("data.io", GOOD + "import numpy as np\nfrom jsage.graph import from_edges\n"),
        ("data.digits", GOOD + dedent("def _copy():\n    from sklearn.datasets import load_digits\n")),
        ("train", GOOD + "import optax\n"),
        ("__init__", GOOD + "from jsage.nn.models import GraphSAGE as GraphSAGE\n"),
        ("graph", GOOD + "def _f():\n" + "    x = 1\n\n    # a remark\n" * 39),
        ("graph.graph", GOOD.replace("halve(x: float", "from_edges(**edge_data: float")),
    ],
)
def test_the_checker_lets_a_good_module_pass(name: str, text: str):
    assert complaints(parse(name, text)) == []
