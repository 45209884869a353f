"""A linear classifier on rows that stay as they are: what embeddings made without labels are worth."""

import warnings
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import normalize

from jsage.data import Dataset
from jsage.nn import l2_normalize
from jsage.recipes.tasks import Task

PENALTIES = 10.0 ** -np.arange(1, 7)
"""Weights of the L2 penalty beside the mean loss; the first of those that validate best is kept."""
STEPS = 100
"""Steps of L-BFGS, at most."""


Fit = tuple[np.ndarray, np.ndarray]
"""`(kernel [d, width], bias [width])`"""


class Probe(NamedTuple):
    """A fitted classifier, and how it did on the validation nodes."""

    kernel: np.ndarray
    bias: np.ndarray
    threshold: float
    score: float

    def outputs(self, rows: Array) -> np.ndarray:
        """What it says of rows, which are scaled to length 1."""
        return unit(rows) @ self.kernel + self.bias


def unit(rows: Any) -> Any:
    """Rows scaled to length 1, dense or SciPy's, on the host."""
    return normalize(rows) if hasattr(rows, "toarray") else np.asarray(l2_normalize(rows))


def fit_probe(task: Task, dataset: Dataset, rows: Array) -> Probe:
    """Fit on the training nodes' rows, with the penalty whose score on the validation nodes is best."""
    train, val = np.asarray(dataset.train), np.asarray(dataset.val)
    scaled, probes = unit(rows[train]).astype(np.float64), []
    for kernel, bias in fit(task, scaled, task.labels[train]):
        outputs = Probe(kernel, bias, 0.0, 0.0).outputs(rows[val])
        threshold = task.threshold(outputs, val)
        score = task.scores(outputs, val, threshold)[task.metric]
        probes.append(Probe(kernel, bias, threshold, float(score)))
    return max(probes, key=lambda probe: probe.score)


def fit(task: Task, rows: np.ndarray, labels: np.ndarray) -> list[Fit]:
    """The kernel and the bias for each penalty: least `mean loss + penalty / 2 · |kernel|²`.

    Logistic regression of classes, or of each of several labels; ridge regression where targets are real.
    """
    makers = {"classification": _classes, "multilabel": _labels, "regression": _reals}
    known = np.isfinite(labels) & (labels >= 0 if task.name != "regression" else True)
    known = known.reshape(len(labels), -1).all(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the steps are limited
        return [makers[task.name](rows[known], labels[known], task.width, penalty) for penalty in PENALTIES]


def _classes(rows: np.ndarray, labels: np.ndarray, width: int, penalty: float) -> Fit:
    """Of two classes, scikit-learn gives the difference; a class without a row is the least likely of all."""
    kernel, bias = np.zeros((rows.shape[1], width)), np.full(width, -np.log(2 * rows.shape[0]))
    there = np.unique(labels)
    if len(there) == 1:
        bias[there] = 0
        return kernel, bias
    two = len(there) == 2
    model = LogisticRegression(C=(1 + two) / (rows.shape[0] * penalty), max_iter=STEPS).fit(rows, labels)
    kernel[:, there] = np.outer(model.coef_[0], (-0.5, 0.5)) if two else model.coef_.T
    bias += model.intercept_.min()
    bias[there] = model.intercept_ * np.array((-0.5, 0.5)) if two else model.intercept_
    return kernel, bias


def _labels(rows: np.ndarray, labels: np.ndarray, width: int, penalty: float) -> Fit:
    """All labels at once: a network without hidden layers, whose loss is the sum over labels."""
    model = MLPClassifier((), solver="lbfgs", alpha=rows.shape[0] * penalty, max_iter=STEPS, random_state=0)
    model.fit(rows, labels)
    return model.coefs_[0], model.intercepts_[0]


def _reals(rows: np.ndarray, labels: np.ndarray, width: int, penalty: float) -> Fit:
    """The loss is the mean over columns, where scikit-learn sums."""
    model = Ridge(alpha=rows.shape[0] * width * penalty / 2).fit(rows, labels)
    return model.coef_.reshape(width, -1).T, np.reshape(model.intercept_, width)
