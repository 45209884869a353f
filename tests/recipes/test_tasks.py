"""Tasks: how labels are read, and which are refused before anything is trained."""

import numpy as np
import pytest
from sklearn import metrics

from jsage.data import Dataset
from jsage.graph import from_edges
from jsage.recipes.tasks import RARE, best_threshold, called, make_task, other_task

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


@pytest.mark.parametrize("seed", range(6))
def test_the_threshold_of_best_f1_is_that_of_scikit_learns_curve(seed: int):
    rng = np.random.default_rng(seed)
    positive = rng.random(200) < 0.1
    scores = np.round(rng.normal(size=200) + positive, 1 + seed % 3)  # with ties
    precision, recall, at = metrics.precision_recall_curve(positive, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    level = best_threshold(scores, positive)
    assert metrics.f1_score(positive, scores > level) == pytest.approx(f1.max(), abs=1e-12)
    best = at[np.isclose(f1[:-1], f1.max(), rtol=0, atol=1e-12)].max()
    np.testing.assert_array_equal(scores > level, scores >= best)  # of equally good ones the highest
    assert (scores > level).any()
    balanced = best_threshold(scores, positive, "balanced")
    every = [metrics.balanced_accuracy_score(positive, scores >= cut) for cut in at]
    assert metrics.balanced_accuracy_score(positive, scores > balanced) == pytest.approx(max(every))


def test_a_threshold_of_one_class_is_none():
    assert best_threshold(np.arange(3.0), np.zeros(3, bool)) == 0
    assert best_threshold(np.arange(3.0), np.ones(3, bool)) == 0


def binary(share: float, rare: int) -> Dataset:
    """100 nodes to train on, `share` of them of the rarer class, and 100 to validate by."""
    labels = np.where(np.arange(200) % 100 < 100 * share, rare, 1 - rare)
    ids = np.arange(200, dtype=np.int32)
    return Dataset(from_edges([], [], 200), None, labels, ids[:100], ids[100:], ids[100:])


@pytest.mark.parametrize("rare", [0, 1])
def test_the_rarer_class_is_called_by_validation_alone(rare: int):
    """A model that sees the rare class a little, and never says so."""
    data = binary(0.1, rare)
    task, val = make_task(data), np.asarray(data.val)
    outputs = np.zeros((100, 2))
    noise = np.random.default_rng(0).normal(size=100) * 0.1
    outputs[:, rare] = (data.labels[val] == rare) * 0.9 - 3.0 + noise
    level = task.threshold(outputs, val)
    assert task.scores(outputs, val, level)["macro_f1"] == 1
    assert task.scores(outputs, val, 0.0)["macro_f1"] < 0.5
    np.testing.assert_array_equal(called(task, outputs, level).argmax(1), data.labels[val])
    assert task.scores(outputs, val, level)["auroc"] == task.scores(outputs, val, 0.0)["auroc"] == 1
    assert task.calls.startswith(f"class {rare} (10.0% of the training nodes) is called at")
    other = make_task(data, threshold="half")
    assert (other.threshold(outputs, val), other.calls) == (0.0, "")
    with pytest.raises(ValueError, match="one of auto, f1, balanced, half, got 'best'"):
        make_task(data, threshold="best")


@pytest.mark.parametrize(("share", "rule"), [(RARE - 0.01, "best F1"), (RARE, ""), (0.5, "")])
def test_a_class_is_rare_below_the_stated_share(share: float, rule: str):
    task = make_task(binary(share, 1))
    assert rule in task.calls
    assert bool(task.calls) == bool(rule)
