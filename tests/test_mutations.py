"""The table of mutations fits the source: each is one change, of a place that is there once."""

import ast
from pathlib import Path

import pytest
from mutations import MUTATIONS, Mutation

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[mutation.what for mutation in MUTATIONS])
def test_a_mutation_changes_one_place_and_names_a_test(mutation: Mutation):
    text = (ROOT / "jsage" / mutation.file).read_text()
    assert text.count(mutation.before) == 1
    assert mutation.after != mutation.before
    ast.parse(text.replace(mutation.before, mutation.after))
    file, *names = mutation.tests.split("::")
    tree = ast.parse((ROOT / "tests" / file).read_text())
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert set(names) <= defined


def test_there_are_many_and_no_two_alike():
    assert len(MUTATIONS) >= 20
    assert len({mutation.what for mutation in MUTATIONS}) == len(MUTATIONS)
    assert len({(mutation.file, mutation.before, mutation.after) for mutation in MUTATIONS}) == len(MUTATIONS)
