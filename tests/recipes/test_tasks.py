"""Tasks: how labels are read, and which are refused before anything is trained."""

import numpy as np
import pytest

from jsage.data import Dataset
from jsage.graph import from_edges
from jsage.recipes.tasks import make_task, other_task

CLASSES = np.array([0, 1, 2, 0, 1, 2])


def dataset(labels) -> Dataset:
    ids = (np.array([i], np.int32) for i in range(3))
    return Dataset(from_edges([], [], len(labels)), None, labels, *ids)


@pytest.mark.parametrize(
    "labels",
    [
        np.array([0, 1, 2, np.nan, 1, 2]),
        np.array([0, 1, 2, -1, 1, 2], np.float32),
        np.eye(3, dtype=np.float32)[CLASSES],
        np.eye(3, dtype=bool)[CLASSES],
    ],
    ids=("NaN", "-1", "rows", "0/1 rows"),
)
def test_classes_in_other_forms_are_read_where_the_task_is_named(labels):
    given = dataset(labels)
    task = make_task(given, "classification")
    expected = CLASSES if labels.ndim == 2 else [0, 1, 2, -1, 1, 2]
    assert (task.name, task.width, task.labels.tolist()) == ("classification", 3, list(expected))
    assert make_task(given).name == ("multilabel" if labels.dtype == bool else "regression")
    assert other_task(labels) == "classification"


def test_floats_0_and_1_are_labels_where_the_task_is_named():
    rows = np.array([[1, 1, 0], [0, 0, 0]] * 3, np.float32)
    task = make_task(dataset(rows), "multilabel")
    assert (task.name, task.labels.dtype, task.labels.tolist()) == ("multilabel", bool, rows.tolist())
    assert other_task(rows) == "multilabel"


@pytest.mark.parametrize("labels", [CLASSES, np.linspace(0, 1, 6), np.ones((6, 2), bool)])
def test_no_doubt(labels):
    assert other_task(labels) is None


@pytest.mark.parametrize("fraction", [np.linspace(0, 1, 6), np.array([0, 1, 2, -2, 1, 2.0])])
def test_floats_that_are_no_classes_are_refused(fraction):
    with pytest.raises(ValueError, match=r"--task classification needs other labels.*integers are classes"):
        make_task(dataset(fraction), "classification")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(6, int), "two classes at least, got 1"),
        (CLASSES * 50_000, r"3 classes, but codes up to 100000, .*number them by y\[y >= 0\] = np.unique"),
        (CLASSES + 10**9, "codes up to 1000000002"),
        (CLASSES[:, None], r"one column, \[6, 1\]: pass labels\[:, 0\]"),
    ],
)
def test_classes_that_cannot_be_learned_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        make_task(dataset(labels))


def test_the_advice_for_codes_is_right():
    y = np.array([50, 700, -1, 50, 9_000])
    y[y >= 0] = np.unique(y[y >= 0], return_inverse=True)[1]
    assert y.tolist() == [0, 1, -1, 0, 2]
    assert make_task(dataset(y)).width == 3
