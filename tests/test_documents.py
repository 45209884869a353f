"""What the documents name exists: names, options, links, files; their tables are those of the code.

`python tests/test_documents.py` writes tests/public_names.txt.
"""

import ast
import contextlib
import importlib
import inspect
import io
import re
import runpy
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from test_rooms import FLOORS, FUNCTION_LINES, MODULE_LINES, ONLY_IN, PARAMETERS

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks/README.md"]
ARCHITECTURE = ROOT / "docs/architecture.md"
NAMES = ROOT / "tests/public_names.txt"
APART = ("jsage.serving.runtime", "jsage.train.checkpoint", "jsage.train.compilation_cache")
"""Public files that their room does not import: they load more, or less, than the room does."""
UNSTABLE = re.compile(r"^jax\.(_src|experimental|extend|interpreters)\b")


def text(page: Path) -> str:
    """A page without the lines of examples that are skipped: what they name is not there yet."""
    return re.sub(r"^>>> .*\+SKIP\n(^\.\.\. .*\n)*", "", page.read_text(), flags=re.MULTILINE)


def label(page: Path) -> str:
    return str(page.relative_to(ROOT))


def table(page: Path, heading: str) -> list[list[str]]:
    """The rows of the first table after a heading, without its head."""
    body = page.read_text().split(f"## {heading}\n")[1]
    lines = re.search(r"^\|.*\n(?:\|.*\n)+", body, re.MULTILINE)
    assert lines is not None, f"{label(page)} has no table under {heading!r}"
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[0].splitlines()[2:]]


def exists(name: str) -> bool:
    """Whether `jsage.x.y` is a module or an attribute of one."""
    first, *rest = name.split(".")
    found = importlib.import_module(first)
    for number, part in enumerate(rest, 2):
        if not hasattr(found, part):
            with contextlib.suppress(ModuleNotFoundError):
                importlib.import_module(".".join(name.split(".")[:number]))
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_names_exist(page: Path):
    names = {found.rstrip(".") for found in re.findall(r"(?<![\w/.-])jsage(?:\.\w+)+", text(page))}
    missing = sorted(name for name in names if not exists(name))
    assert not missing, f"{label(page)} names what is not there: {missing}"


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_python_is_an_example_that_runs(page: Path):
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert all(block.startswith(">>> ") for block in blocks), f"{label(page)} has code without '>>>'"
    runs = page.parent == ARCHITECTURE.parent or page.name == "README.md"  # pyproject.toml's doctest-glob
    assert runs or not blocks, f"{label(page)} has code that nothing runs"


def test_no_example_is_skipped():
    skipped = [label(page) for page in PAGES if "+SKIP" in page.read_text()]
    assert not skipped


@cache
def options(program: str) -> set[str]:
    """The options of `python -m program`."""
    out, argv = io.StringIO(), sys.argv
    sys.argv = [program, "--help"]
    try:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)  # a test imported it
            runpy.run_module(program, run_name="__main__")
    finally:
        sys.argv = argv
    assert "--help" in out.getvalue(), f"python -m {program} --help prints no help"
    return set(re.findall(r"--[a-z][a-z-]*", out.getvalue()))


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_commands_have_their_options(page: Path):
    for program, rest in re.findall(
        r"python -m ((?:experiments|benchmarks)\.\w+)([^`\n#]*)", page.read_text()
    ):
        missing = set(re.findall(r"--[a-z][a-z-]*", rest)) - options(program)
        assert not missing, f"{label(page)}: `python -m {program}` has no {sorted(missing)}"


def test_the_options_of_classify_exist():
    rows = table(ROOT / "docs/experiments.md", "Options of `classify`")
    missing = set(re.findall(r"--[a-z][a-z-]*", str(rows))) - options("experiments.classify")
    assert len(rows) > 5
    assert not missing, f"docs/experiments.md: experiments.classify has no {sorted(missing)}"


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_links_lead_somewhere(page: Path):
    targets = re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text())
    broken = [target for target in targets if not (page.parent / target).exists()]
    assert not broken, f"{label(page)} links to what is not there: {broken}"


def test_readme_is_short():
    length = len((ROOT / "README.md").read_text().splitlines())
    assert length <= 150, f"README.md has {length} lines: move something to docs/"


def test_every_page_can_be_reached_from_readme():
    linked = set(re.findall(r"\]\((docs/\w+\.md)", (ROOT / "README.md").read_text()))
    pages = {label(page) for page in PAGES if page.parent == ARCHITECTURE.parent}
    assert pages <= linked, f"README.md links to no {sorted(pages - linked)}"


def test_floors_are_those_of_the_tests():
    rows = table(ARCHITECTURE, "Rooms")
    written = {room.strip("`"): int(floor) for floor, room, _ in rows}
    expected = {"jsage" if room == "__init__" else room: floor for room, floor in FLOORS.items()}
    assert written == expected, "docs/architecture.md and FLOORS in tests/test_rooms.py differ"
    planned = {room.strip("`") for _, room, what in rows if what.startswith("planned")}
    there = {path.stem for path in (ROOT / "jsage").iterdir()}
    assert not planned & there, (
        f"docs/architecture.md calls {sorted(planned & there)} planned: they are there"
    )


def test_packages_are_where_the_page_says():
    body = ARCHITECTURE.read_text()
    for package, rooms in ONLY_IN.items():
        if rooms:
            found = re.search(rf"\b{package} (?:is imported only )?in ([^;.]+)", body)
            assert found is not None, f"docs/architecture.md does not say where {package} is imported"
            assert set(re.findall(r"`(\w+)`", found[1])) == rooms, (
                f"docs/architecture.md is wrong on {package}"
            )


def test_budgets_are_those_of_the_tests():
    body = (ROOT / "CONTRIBUTING.md").read_text()
    budget = (
        f"at most {MODULE_LINES} lines, a function at most {FUNCTION_LINES} lines of code and {PARAMETERS}"
    )
    assert f"{budget} parameters" in " ".join(body.split()), f"CONTRIBUTING.md does not say {budget!r}"


def test_tasks_name_files():
    tasks = table(ARCHITECTURE, "What touches what")
    assert len(tasks) >= 20
    for task, files in tasks:
        named = re.findall(r"`([^`]+)`( \(new file\))?", files)
        assert 1 <= len(named) <= 2, f"{task}: expected one or two files, got {files}"
        for path, new in named:
            there = (ROOT / path).is_file()
            assert there != bool(new), f"{task}: {path} is {'there already' if there else 'no file'}"
            assert (ROOT / path).parent.is_dir() or new, f"{task}: {path} is in no folder"


def unstable(source: str) -> Iterator[str]:
    """The private and experimental names of jax that a file imports or spells out."""
    if not re.search(r"\bjax\b.*(_src|experimental|extend|interpreters)\b", source):
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        else:
            found = [ast.unparse(node)] if isinstance(node, ast.Attribute) else []
        yield from filter(UNSTABLE.match, found)


def test_private_names_of_jax_are_listed():
    used: dict[str, set[str]] = {}
    for path in (
        path for top in ("jsage", "experiments", "benchmarks") for path in (ROOT / top).rglob("*.py")
    ):
        for name in unstable(path.read_text()):
            parts = path.relative_to(ROOT).parts
            used.setdefault(name, set()).add(".".join(parts[:2]) if parts[0] == "jsage" else parts[0])
    rows = table(ARCHITECTURE, "Private and experimental names of jax")
    listed = {name.strip("`"): set(re.findall(r"`([^`]+)`", where)) for name, where, _ in rows}
    assert listed == used, "docs/architecture.md lists other private names of jax than the source uses"


def listed(module: str) -> Iterator[str]:
    """The public names below a module: what a room's `__init__` lists, or what a file defines."""
    path = Path(importlib.import_module(module).__file__ or "")
    for node in ast.parse(path.read_text()).body:
        if path.stem == "__init__" and isinstance(node, ast.ImportFrom):
            for name in (alias.name for alias in node.names if alias.asname == alias.name):
                yield f"{module}.{name}"
                value = getattr(importlib.import_module(module), name)
                yield from listed(value.__name__) if inspect.ismodule(value) else []
        elif path.stem != "__init__":
            target = getattr(node, "target", None) if module == "jsage.typing" else None  # an alias
            name = getattr(node, "name", None) or getattr(target, "id", "_")
            yield from [] if name.startswith("_") else [f"{module}.{name}"]


def public_names() -> list[str]:
    names = {*listed("jsage"), *(name for module in APART for name in (module, *listed(module)))}
    return sorted(names, key=lambda name: (name.split(".")[:-1], name))


def test_public_names_are_those_of_the_file():
    names, written = public_names(), NAMES.read_text().split()
    added, gone = sorted(set(names) - set(written)), sorted(set(written) - set(names))
    assert names == written, (
        f"public names that tests/public_names.txt lacks: {added}; that are not there: {gone}. "
        "If that is meant, run `python tests/test_documents.py`, which writes the file"
    )


def test_public_names_exist():
    missing = [name for name in public_names() if not exists(name)]
    assert not missing


if __name__ == "__main__":
    NAMES.write_text("\n".join(public_names()) + "\n")
