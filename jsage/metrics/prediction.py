"""Scores over all rows at once, exact, with scikit-learn's definitions.

Accuracy and F1 are computed from counts: `confusion` and `multilabel_confusion` run inside jit, may be summed
in a scan, and are read on the host afterwards. Rank and regression metrics take whole arrays on the host, in
float64: they are scikit-learn's own (extra `metrics`), behind checks of what they are given.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, SupportsFloat

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real, Shaped

from jsage.typing import HostArray

Counts = Int[HostArray, "c *c_or_2_2"]
Scores = Real[HostArray, "n *c"]
AlikeLabels = Shaped[HostArray, "..."]
"""Labels of the same shape as the scores, which the functions themselves check."""


def mean(sums: Mapping[str, SupportsFloat]) -> dict[str, float]:
    """Divide summed metrics by their `"weight"`, once, after the epoch.

    >>> mean({"loss": np.float32(6.0), "correct": np.int32(2), "weight": np.float32(4.0)})
    {'loss': 1.5, 'correct': 0.5}
    """
    weight = float(sums["weight"])
    if not weight > 0:
        raise ValueError(f"expected a positive sum of weights, got {weight}: no row was valid")
    return {name: float(total) / weight for name, total in sums.items() if name != "weight"}


def confusion(
    scores: Real[HostArray, "n c"], labels: Int[HostArray, " n"], mask: Bool[HostArray, " n"] | None = None
) -> Int[Array, "c c"]:
    """Count the rows of each true class (row) that score highest in each class (column).

    The first of equal scores wins. Rows under mask False or labeled -1 are left out. Works under jit.

    >>> confusion(jnp.array([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0]]), jnp.array([0, 1, 1]))
    Array([[1, 0], [1, 1]], dtype=int32)
    """
    labels = jnp.asarray(labels)
    valid = labels >= 0 if mask is None else jnp.asarray(mask) & (labels >= 0)
    num_classes = scores.shape[1]
    predicted = jnp.argmax(jnp.asarray(scores), axis=1)
    counts = jnp.zeros((num_classes, num_classes), jnp.int32)
    return counts.at[jnp.where(valid, labels, 0), predicted].add(valid.astype(jnp.int32))


def multilabel_confusion(
    scores: Real[HostArray, "n c"],
    labels: Shaped[HostArray, "n c"],
    mask: Bool[HostArray, " n"] | None = None,
) -> Int[Array, "c 2 2"]:
    """Count, for each class, the entries of truth 0 or 1 (row) that score above 0 (column 1) or not (0).

    Scores are logits. Rows under mask False and labels of -1 are left out. Works under jit.

    >>> multilabel_confusion(jnp.array([[2.0], [-1.0], [0.5]]), jnp.array([[1], [1], [0]])).tolist()
    [[[0, 1], [1, 1]]]
    """
    truth, positive = jnp.asarray(labels).astype(jnp.int32), jnp.asarray(scores) > 0
    valid = truth >= 0 if mask is None else jnp.asarray(mask)[:, None] & (truth >= 0)
    cells = [valid & (truth == t) & (positive == p) for t in (0, 1) for p in (False, True)]
    return jnp.stack([cell.sum(0) for cell in cells], axis=1).reshape(-1, 2, 2)


def accuracy(counts: Counts) -> float:
    """Return the share of right predictions: rows of a confusion matrix, entries of multi-label counts.

    >>> accuracy(np.array([[3, 1], [0, 4]]))
    0.875
    """
    table = _checked_counts(counts)
    return float(np.trace(table, axis1=-2, axis2=-1).sum() / table.sum())


class ClassScores(NamedTuple):
    """Scores of each class, float64; 0 where they are undefined (a class never predicted, or never true)."""

    precision: Float[np.ndarray, " c"]
    recall: Float[np.ndarray, " c"]
    f1: Float[np.ndarray, " c"]
    support: Int[np.ndarray, " c"]
    """How many rows are truly of the class."""


def per_class(counts: Counts) -> ClassScores:
    """Return each class's precision `tp/(tp+fp)`, recall `tp/(tp+fn)`, F1 `2tp/(2tp+fp+fn)` and support.

    >>> per_class(np.array([[3, 1], [0, 4]])).precision
    array([1. , 0.8])
    """
    tp, fp, fn = _outcomes(counts)
    return ClassScores(_ratio(tp, tp + fp), _ratio(tp, tp + fn), _ratio(2 * tp, 2 * tp + fp + fn), tp + fn)


def micro_f1(counts: Counts) -> float:
    """Return `2Σtp / (2Σtp + Σfp + Σfn)` over all classes; for single-label counts this is the accuracy.

    >>> micro_f1(np.array([[[5, 1], [1, 3]], [[8, 0], [2, 0]]])).__round__(3)
    0.6
    """
    tp, fp, fn = (outcome.sum() for outcome in _outcomes(counts))
    return float(_ratio(2 * tp, 2 * tp + fp + fn))


def macro_f1(counts: Counts) -> float:
    """Average F1 over classes: those true or predicted at least once (single-label), or all (multi-label).

    That is scikit-learn's default set of labels; an undefined F1 counts as 0 (`zero_division=0`).

    >>> macro_f1(np.array([[3, 0, 0], [0, 2, 0], [0, 0, 0]]))
    1.0
    """
    tp, fp, fn = _outcomes(counts)
    among = tp + fp + fn > 0 if np.ndim(counts) == 2 else np.ones(len(tp), bool)
    return float(_ratio(2 * tp, 2 * tp + fp + fn)[among].mean())


def auroc(scores: Scores, labels: AlikeLabels) -> float:
    """Return the chance that a positive outscores a negative, ties counting half (Mann and Whitney, 1947).

    For `[n, c]` the mean over classes. Labels are 0, 1, or -1, left out. Two logits a row become one score by
    their difference. Raises ValueError where a class has no positive or no negative.

    >>> auroc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([0, 0, 1, 1]))
    0.875
    """
    return _mean_over_classes(_scikit_learn().roc_auc_score, scores, labels, needs_negatives=True)


def average_precision(scores: Scores, labels: AlikeLabels) -> float:
    """Return `Σ_k (recall_k - recall_{k-1}) · precision_k` over the distinct scores, from the highest down.

    For `[n, c]` the mean over classes. Labels are 0, 1, or -1, left out. Raises ValueError where a class has
    no positive.

    >>> average_precision(np.array([0.9, 0.8, 0.7]), np.array([1, 0, 1])).__round__(4)
    0.8333
    """
    return _mean_over_classes(_scikit_learn().average_precision_score, scores, labels, needs_negatives=False)


def mae(predictions: Scores, targets: AlikeLabels) -> float:
    """Return the mean of `|prediction - target|`, in the targets' unit; for `[n, c]` the mean over targets.

    >>> mae(np.array([1.0, 4.0]), np.array([2.0, 2.0]))
    1.5
    """
    predictions, targets = _checked_pair(predictions, targets)
    return float(_scikit_learn().mean_absolute_error(targets, predictions))


def rmse(predictions: Scores, targets: AlikeLabels) -> float:
    """Return the root of the mean of `(prediction - target)²`; for `[n, c]` the mean of the roots.

    >>> rmse(np.array([1.0, 4.0]), np.array([2.0, 5.0]))
    1.0
    """
    predictions, targets = _checked_pair(predictions, targets)
    return float(_scikit_learn().root_mean_squared_error(targets, predictions))


def r2(predictions: Scores, targets: AlikeLabels) -> float:
    """Return `1 - Σ(target - prediction)² / Σ(target - mean target)²`, of two rows or more.

    For `[n, c]` the mean over targets. Where all targets are equal it is 1 for exact predictions, else 0.

    >>> r2(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0]))
    0.5
    """
    predictions, targets = _checked_pair(predictions, targets)
    if len(targets) < 2:
        raise ValueError("R² needs at least two rows, got 1")
    return float(_scikit_learn().r2_score(targets, predictions))


def _checked_counts(counts: Counts) -> np.ndarray:
    table = np.asarray(counts, np.int64)
    if table.shape[1:] not in ((len(table),), (2, 2)):
        raise ValueError(f"expected counts of shape [c, c] or [c, 2, 2], got {list(table.shape)}")
    if table.sum() == 0:
        raise ValueError(
            "expected counts of at least one row, got all zeros: the split is empty or unlabeled"
        )
    return table


def _outcomes(counts: Counts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True positives, false positives and false negatives of each class."""
    table = _checked_counts(counts)
    if table.ndim == 3:
        return table[:, 1, 1], table[:, 0, 1], table[:, 1, 0]
    tp = np.diagonal(table)
    return tp, table.sum(0) - tp, table.sum(1) - tp


def _ratio(part: Any, whole: Any) -> Any:
    """The quotient, 0 for 0/0."""
    return part / np.maximum(whole, 1)


def _checked_pair(scores: HostArray, labels: HostArray) -> tuple[np.ndarray, np.ndarray]:
    pair = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    if pair[0].shape != pair[1].shape:
        raise ValueError(f"scores and labels differ in shape: {pair[0].shape} and {pair[1].shape}")
    if pair[0].size == 0:
        raise ValueError(f"expected at least one row, got shape {pair[0].shape}: the split is empty")
    for name, values in zip(("scores", "labels"), pair, strict=True):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} hold {np.count_nonzero(~np.isfinite(values))} NaN or infinite values")
    return pair


def _mean_over_classes(
    metric: Callable[[np.ndarray, np.ndarray], float],
    scores: HostArray,
    labels: HostArray,
    needs_negatives: bool,
) -> float:
    scores, labels = (values.reshape(len(values), -1).T for values in _checked_pair(scores, labels))
    if not np.isin(labels, (-1, 0, 1)).all():
        raise ValueError(f"expected labels 0, 1 or -1 (unknown), got {np.unique(labels)[:9].tolist()}")
    for c, column in enumerate(labels):
        missing = [name for name, label in (("positive", 1), ("negative", 0)) if label not in column]
        if "positive" in missing or (missing and needs_negatives):
            raise ValueError(
                f"class {c} has no {missing[0]} among {column.size} labels, so the metric is undefined: "
                "leave that class out, or use more rows"
            )
    return float(np.mean([metric(y[y >= 0], s[y >= 0]) for s, y in zip(scores, labels, strict=True)]))


def _scikit_learn() -> Any:
    try:
        import sklearn.metrics
    except ImportError as error:
        raise ImportError(
            "rank and regression metrics need scikit-learn: pip install 'jsage[metrics]'"
        ) from error
    return sklearn.metrics
