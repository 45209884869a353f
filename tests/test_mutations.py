"""The table of mutations fits the source and its page; each is one change of a place that is there once."""

import ast
from functools import cache
from pathlib import Path

import pytest
from mutations import MUTATIONS, Mutation
from test_documents import table

ROOT = Path(__file__).parents[1]


@cache
def defined(path: Path) -> set[str]:
    """The functions and classes of a test file."""
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[mutation.what for mutation in MUTATIONS])
def test_a_mutation_changes_one_place_and_names_a_test(mutation: Mutation):
    text = (ROOT / "jsage" / mutation.file).read_text()
    assert text.count(mutation.before) == 1
    assert mutation.after != mutation.before
    ast.parse(text.replace(mutation.before, mutation.after))
    file, *names = mutation.tests.split("::")
    assert set(names) <= defined(ROOT / "tests" / file)


def test_there_are_many_and_no_two_alike():
    assert len(MUTATIONS) >= 20
    assert len({mutation.what for mutation in MUTATIONS}) == len(MUTATIONS)
    assert len({(mutation.file, mutation.before, mutation.after) for mutation in MUTATIONS}) == len(MUTATIONS)


def test_the_page_lists_them_and_tests_that_are_there():
    rows = [
        [cell.strip("`") for cell in row]
        for row in table(ROOT / "CONTRIBUTING.md", "What the tests must catch")
    ]
    assert [row[:2] for row in rows] == [[mutation.what, mutation.file] for mutation in MUTATIONS]
    for (*_, caught_by), mutation in zip(rows, MUTATIONS, strict=True):
        file, name = caught_by.split("::")
        assert Path(mutation.tests.split("::")[0]).stem == file
        assert name in defined(ROOT / "tests" / mutation.tests.split("::")[0])
