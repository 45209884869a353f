"""What is predicted from the labels: the loss, the scores and the shape of the output."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jsage import losses, metrics
from jsage._internal.checks import check_labels
from jsage.data import Dataset

TASKS = ("classification", "multilabel", "regression")
THRESHOLDS = ("auto", "f1", "balanced", "half")
RARE = 0.2
"""A class with a smaller share of the training nodes is rare."""
_GAPS = 100
"""Numbers of classes that no node has, beside one for each that some have."""


class Task(NamedTuple):
    """A prediction task: `labels` as the loss reads them, and how outputs are scored."""

    name: str
    metric: str
    width: int
    labels: np.ndarray
    loss: Callable
    """`(outputs [b, width], labels [b, …], mask [b]) -> [b]`, 0 in masked rows."""
    scores: Callable
    """`(outputs [n, width], nodes [n], threshold) -> {name: score}`; `threshold` is for multi-label and two
    classes."""
    threshold: Callable
    """`(outputs, nodes) -> threshold`, chosen on validation nodes."""
    calls: str = ""
    """How one of two classes is called, in a sentence."""


def make_task(
    dataset: Dataset,
    name: str | None = None,
    *,
    balanced: bool = False,
    smoothing: float = 0.0,
    threshold: str = "auto",
) -> Task:
    """The task that a data set's labels ask for: classes, 0/1 rows, or real values.

    Classes are scored by accuracy (two: by AUROC), multi-label rows by micro-F1 at the threshold that is
    best on validation nodes (and, `@k`, by that of each node's `k` likeliest labels, where `k` is how many
    it has), real values by R². `balanced` weighs rare classes up; classes are learned with `smoothing`.

    Of two classes, 1 is called where its logit exceeds that of 0 by more than a threshold: the one of best F1
    of the rarer class on validation nodes ("f1"), of best balanced accuracy ("balanced"), or 0 ("half"). With
    "auto" it is "f1" where the rarer class has less than `RARE` of the training nodes, else "half".

    With the `name` of a task, labels are read for it by `labels_for`. Raises ValueError for labels that are
    not the task's, for a class alone, and for codes of classes that leave most numbers out.

    >>> from jsage.data import digits
    >>> task = make_task(digits())
    >>> task.name, task.metric, task.width
    ('classification', 'accuracy', 10)
    """
    labels = labels_for(check_labels(dataset.labels), name)
    found = "regression" if labels.dtype.kind == "f" else TASKS[labels.ndim - 1]
    if (name or found) != found:
        raise ValueError(
            f"--task {name} needs other labels: those of this data set ask for {found} (integers are "
            "classes, 0/1 rows several classes a node, floats real values)"
        )
    train = np.asarray(dataset.train)
    classes = partial(_classes, smoothing=smoothing, rule=threshold)
    return {"classification": classes, "multilabel": _multilabel, "regression": _regression}[found](
        labels, train, balanced
    )


def labels_for(labels: np.ndarray, name: str | None) -> np.ndarray:
    """Labels as the named task has them, where their values say it and their dtype does not; else unchanged.

    For classification, whole numbers as floats (NaN, -1: none) and rows with a single 1 become classes; for
    multilabel, floats 0 and 1 become 0/1 rows.

    >>> labels_for(np.array([2.0, np.nan]), "classification"), labels_for(np.eye(2), "classification")
    (array([ 2, -1], dtype=int32), array([0, 1], dtype=int32))
    """
    floats = labels.dtype.kind == "f"
    binary = labels.ndim == 2 and bool(((labels == 0) | (labels == 1)).all())
    if name == "multilabel" and floats and binary:
        return labels.astype(bool)
    if name == "classification" and binary and (labels.sum(1) == 1).all():
        return labels.argmax(1).astype(np.int32)
    if name == "classification" and floats and labels.ndim == 1:
        classes = np.where(np.isnan(labels), -1, labels)
        if ((classes == np.rint(classes)) & (classes >= -1) & (classes < 2**31)).all():
            return classes.astype(np.int32)
    return labels


def other_task(labels: np.ndarray) -> str | None:
    """Another task that the labels may be meant for, by their values; None where there is no doubt.

    >>> other_task(np.array([2.0, np.nan])), other_task(np.array([2, -1]))
    ('classification', None)
    """
    return next((name for name in TASKS if labels_for(labels, name) is not labels), None)


def _check_classes(labels: np.ndarray) -> None:
    codes = np.unique(labels[labels >= 0])
    if len(codes) < 2:
        raise ValueError(f"labels must have two classes at least, got {len(codes)}: give other labels")
    if codes[-1] > 2 * len(codes) + _GAPS:
        raise ValueError(
            f"labels have {len(codes)} classes, but codes up to {codes[-1]}, an output each: number them "
            "by y[y >= 0] = np.unique(y[y >= 0], return_inverse=True)[1]"
        )


def _classes(labels: np.ndarray, train: np.ndarray, balanced: bool, smoothing: float, rule: str) -> Task:
    _check_classes(labels)
    width = int(labels.max()) + 1
    weights = losses.class_weights(labels[train], width) if balanced else None
    row_losses = lambda out, y, mask: losses.cross_entropy(out, y, mask, weights, smoothing)  # noqa: E731
    if width == 2:
        return _two_classes(labels, labels[train], row_losses, rule)

    def scores(outputs, nodes, threshold):
        table = metrics.confusion(outputs, labels[nodes])
        return {"accuracy": metrics.accuracy(table), "macro_f1": metrics.macro_f1(table)}

    none = lambda outputs, nodes: 0.0  # noqa: E731
    return Task("classification", "accuracy", width, labels, row_losses, scores, none)


def _two_classes(labels: np.ndarray, known: np.ndarray, row_losses: Callable, rule: str) -> Task:
    if rule not in THRESHOLDS:
        raise ValueError(f"a threshold is one of {', '.join(THRESHOLDS)}, got {rule!r}")
    count = np.bincount(known[known >= 0], minlength=2)
    rare = int(count[1] <= count[0])
    share = count[rare] / max(count.sum(), 1)
    rule = ("f1" if share < RARE else "half") if rule == "auto" else rule

    def scores(outputs, nodes, threshold):
        y, margin = labels[nodes], _margin(outputs)
        table = metrics.confusion(np.eye(2, dtype=np.float32)[(margin > threshold).astype(int)], y)
        found = {"auroc": metrics.auroc(margin, y), "average_precision": metrics.average_precision(margin, y)}
        return found | {"accuracy": metrics.accuracy(table), "macro_f1": metrics.macro_f1(table)}

    def threshold(outputs, nodes):
        if rule == "half":
            return 0.0
        y, sign = labels[nodes], 2 * rare - 1
        return sign * best_threshold(sign * _margin(outputs)[y >= 0], y[y >= 0] == rare, rule)

    how = {"f1": "best F1 of it", "balanced": "best balanced accuracy"}.get(rule)
    calls = f"class {rare} ({share:.1%} of the training nodes) is called at the threshold of {how} on "
    calls = f"{calls}validation nodes" if how else ""
    return Task("classification", "auroc", 2, labels, row_losses, scores, threshold, calls)


def _margin(outputs: np.ndarray) -> np.ndarray:
    outputs = np.asarray(outputs, np.float64)
    return outputs[:, 1] - outputs[:, 0]


def called(task: Task, outputs: Float[np.ndarray, "n c"], threshold: float) -> Float[np.ndarray, "n c"]:
    """Outputs whose largest is that of the class that is called; others than those of two classes unchanged.

    >>> from jsage.data import digits
    >>> data = digits()
    >>> task = make_task(data._replace(labels=np.asarray(data.labels) % 2))
    >>> called(task, np.array([[0.0, 1.0]]), 1.5).argmax(1)
    array([0])
    """
    if task.name != "classification" or task.width > 2:
        return outputs
    above = _margin(outputs) - threshold
    return np.stack([-above / 2, above / 2], 1)


def best_threshold(
    scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"], rule: str = "f1"
) -> float:
    """The `t` for which `scores > t` has the best F1, or ("balanced") mean recall of the two classes.

    Halfway between two scores, so that none is equal to it; of equally good ones the highest; 0 where all are
    of one class. At least the highest score is above it.

    >>> best_threshold(np.array([0.0, 0.5, 0.25, 1.0]), np.array([False, False, True, True]))
    0.125
    """
    total, order = int(positive.sum()), np.argsort(-scores, kind="stable")
    if total in (0, len(scores)):
        return 0.0
    ranked, hits = scores[order].astype(np.float64), np.cumsum(positive[order])
    last = np.flatnonzero(np.append(ranked[1:] < ranked[:-1], True))  # the last of equal scores
    hits, wrong = hits[last], last + 1 - hits[last]
    if rule == "f1":
        value = 2 * hits / (hits + wrong + total)
    else:
        value = hits / total - wrong / (len(scores) - total)
    at = int(value.argmax())
    lower = ranked[last[at + 1]] if at + 1 < len(last) else ranked[-1] - 1
    return float((ranked[last[at]] + lower) / 2)


def _multilabel(labels: np.ndarray, train: np.ndarray, balanced: bool) -> Task:
    weights = losses.positive_weights(labels[train]) if balanced else None

    def scores(outputs, nodes, threshold):
        y = labels[nodes]
        chosen = metrics.multilabel_confusion(outputs - threshold, y)
        known = metrics.multilabel_confusion(top_labels(outputs, y.sum(1)).astype(np.float32), y)
        return {
            "micro_f1": metrics.micro_f1(chosen),
            "macro_f1": metrics.macro_f1(chosen),
            "micro_f1@k": metrics.micro_f1(known),
            "macro_f1@k": metrics.macro_f1(known),
        }

    def threshold(outputs, nodes):
        levels = np.quantile(outputs, np.linspace(0.5, 0.999, 60))
        counts = [metrics.multilabel_confusion(outputs - level, labels[nodes]) for level in levels]
        return levels[np.argmax([metrics.micro_f1(count) for count in counts])]

    def row_losses(
        out, y, mask
    ):  # the sum over labels, as large beside the weight decay as that of one class
        return y.shape[1] * losses.binary_cross_entropy(out, y, mask, weights)

    return Task("multilabel", "micro_f1", labels.shape[1], labels, row_losses, scores, threshold)


def _regression(labels: np.ndarray, train: np.ndarray, balanced: bool) -> Task:
    columns = labels.reshape(len(labels), -1)
    centre, spread = np.nanmean(columns[train], 0), np.maximum(np.nanstd(columns[train], 0), 1e-6)

    def scores(outputs, nodes, threshold):
        guess, y = outputs * spread + centre, columns[nodes]
        pairs = list(zip(guess.T, y.T, strict=True))
        named = {"r2": metrics.r2, "mae": metrics.mae, "rmse": metrics.rmse}
        return {name: float(np.mean([metric(*pair) for pair in pairs])) for name, metric in named.items()}

    def row_losses(out, y, mask):
        return jnp.stack([losses.squared_error(out[:, i], y[:, i], mask) for i in range(y.shape[1])]).mean(0)

    standard = ((columns - centre) / spread).astype(np.float32)
    return Task(
        "regression", "r2", columns.shape[1], standard, row_losses, scores, lambda outputs, nodes: 0.0
    )


def top_labels(outputs: Float[np.ndarray, "n c"], counts: Int[np.ndarray, " n"]) -> Bool[np.ndarray, "n c"]:
    """The `counts[i]` largest outputs of each row: the protocol of the node2vec literature.

    >>> top_labels(np.array([[0.1, 0.9, 0.5]]), np.array([2])).astype(int)
    array([[0, 1, 1]])
    """
    rank = np.argsort(np.argsort(-outputs, axis=1, kind="stable"), axis=1, kind="stable")
    return rank < counts[:, None]
