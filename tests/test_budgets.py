"""Programs are counted, whoever compiled them before, and too many of them are an error."""

from pathlib import Path

import budgets
import jax
import lanes
import numpy as np

HERE = Path(__file__)


def test_a_program_counts_once_and_again_when_it_comes_from_the_cache_on_disk():
    before, add = budgets.programs[HERE].total(), jax.jit(lambda x: x + 1)
    for values, new in ((np.ones(3), 1), (np.zeros(3), 1), (np.ones(4), 2)):
        add(values)
        assert budgets.programs[HERE].total() == before + new
    jax.clear_caches()
    add(np.ones(3))
    assert budgets.programs[HERE].total() == before + 3
    assert set(budgets.programs[HERE]) <= set(range(1, 1 + len(HERE.read_text().splitlines())))


def test_more_than_the_budget_is_an_error_that_says_what_to_do(monkeypatch):
    monkeypatch.setattr(budgets, "EXCEPTIONS", {"test_budgets": budgets.programs[HERE].total()})
    assert budgets.excess(HERE) is None
    jax.jit(lambda x: x - 1)(np.ones(5))
    assert "its budget is" in str(budgets.excess(HERE))
    assert f"JSAGE_PROGRAMS=1 pytest {HERE}" in str(budgets.excess(HERE))


def test_every_exception_is_a_file_that_needs_more():
    files = {path.stem for path in HERE.parent.rglob("test_*.py")}
    assert budgets.EXCEPTIONS.keys() <= files
    assert all(most > budgets.MOST for most in budgets.EXCEPTIONS.values())


def test_every_slow_test_is_there_and_leaves_its_file_something_quick():
    for name in lanes.SLOW:
        file, *_, function = name.split("::")
        assert f"def {function}(" in (lanes.TESTS / file).read_text(), name
    for file in lanes.EXAMPLES:
        assert (lanes.TESTS.parent / file).is_file(), file


def test_no_two_files_of_tests_have_one_name():
    names = [path.name for path in lanes.TESTS.rglob("test_*.py")]
    assert len(names) == len(set(names))
