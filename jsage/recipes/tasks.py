"""What is predicted from the labels: the loss, the scores and the shape of the output."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jsage import losses, metrics
from jsage.data import Dataset

TASKS = ("classification", "multilabel", "regression")


class Task(NamedTuple):
    """A prediction task: `labels` as the loss reads them, and how outputs are scored."""

    name: str
    metric: str
    width: int
    labels: np.ndarray
    loss: Callable
    """`(outputs [b, width], labels [b, …], mask [b]) -> [b]`, 0 in masked rows."""
    scores: Callable
    """`(outputs [n, width], nodes [n], threshold) -> {name: score}`; `threshold` is for multi-label."""
    threshold: Callable
    """`(outputs, nodes) -> threshold`, chosen on validation nodes."""


def make_task(
    dataset: Dataset, name: str | None = None, *, balanced: bool = False, smoothing: float = 0.0
) -> Task:
    """The task that a data set's labels ask for: classes, 0/1 rows, or real values.

    Classes are scored by accuracy (two: by AUROC), multi-label rows by micro-F1 at the threshold that is
    best on validation nodes (and, `@k`, by that of each node's `k` likeliest labels, where `k` is how many
    it has), real values by R². `balanced` weighs rare classes up; classes are learned with `smoothing`.

    >>> from jsage.data import digits
    >>> task = make_task(digits())
    >>> task.name, task.metric, task.width
    ('classification', 'accuracy', 10)
    """
    labels = np.asarray(dataset.labels)
    found = "regression" if labels.dtype.kind == "f" else TASKS[labels.ndim - 1]
    if (name or found) != found:
        raise ValueError(f"--task {name} needs other labels: those of this data set ask for {found}")
    train = np.asarray(dataset.train)
    classes = partial(_classes, smoothing=smoothing)
    return {"classification": classes, "multilabel": _multilabel, "regression": _regression}[found](
        labels, train, balanced
    )


def _classes(labels: np.ndarray, train: np.ndarray, balanced: bool, smoothing: float) -> Task:
    width = int(labels.max()) + 1
    weights = losses.class_weights(labels[train], width) if balanced else None

    def scores(outputs, nodes, threshold):
        y = labels[nodes]
        table = metrics.confusion(outputs, y)
        found = {"accuracy": metrics.accuracy(table), "macro_f1": metrics.macro_f1(table)}
        if width > 2:
            return found
        margin = outputs[:, 1] - outputs[:, 0]
        ranked = {"auroc": metrics.auroc(margin, y)}
        return ranked | {"average_precision": metrics.average_precision(margin, y)} | found

    metric = "accuracy" if width > 2 else "auroc"
    row_losses = lambda out, y, mask: losses.cross_entropy(out, y, mask, weights, smoothing)  # noqa: E731
    return Task("classification", metric, width, labels, row_losses, scores, lambda outputs, nodes: 0.0)


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
