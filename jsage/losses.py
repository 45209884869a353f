"""Losses, one value a row: dead rows cost exactly nothing, whatever they hold, and get no gradient.

Every loss is `(scores, labels, mask) -> [b]`, computed in float32. The rows of a padded batch are told by the
mask; a label of -1 is unknown. So a recipe reads

    live = labelled(labels, mask)
    losses = cross_entropy(logits, labels, live)
    return masked_mean(losses, live), ({"loss": losses.sum(), "weight": live.sum().astype(float)}, stats)
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from jsage.typing import HostArray

Losses = Float[Array, " b"]


def cross_entropy(
    logits: Float[Array, "b c"],
    labels: Int[Array, " b"],
    mask: Bool[Array, " b"],
    weights: Float[HostArray, " c"] | None = None,
    smoothing: float = 0.0,
) -> Losses:
    """Single-label: `-w_y · Σ_c q_c log softmax(logits)_c`, with `w = 1` unless class weights are given.

    `q` is 1 at the label; with `smoothing` `ε` it is `1 - ε` there and `ε / C` at every class (Szegedy et
    al., 2016, section 7). Raises ValueError for an `ε` outside [0, 1).

    Rows labelled -1 are dead. Divide by the number of rows, not by the sum of weights: `class_weights`
    average to 1 over the rows that they were made from.

    >>> logits = jnp.array([[0.0, 0.0], [9.0, 9.0], [jnp.nan, 1.0]])
    >>> cross_entropy(logits, jnp.array([0, -1, 1]), jnp.array([True, True, False])).round(3)
    Array([0.693, 0. , 0. ], dtype=float32)
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing is a share of the label, 0 or more and below 1, got {smoothing}")
    live = mask & (labels >= 0)
    labels = jnp.where(live, labels, 0)
    log_probabilities = jax.nn.log_softmax(_cleared(logits, live[:, None]), axis=-1)
    losses = -jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)[:, 0]
    if smoothing:
        losses = (1 - smoothing) * losses - smoothing * log_probabilities.mean(-1)
    if weights is not None:
        losses = losses * jnp.asarray(weights, jnp.float32)[labels]
    return jnp.where(live, losses, 0.0)


def binary_cross_entropy(
    logits: Float[Array, "b c"],
    labels: Shaped[Array, "b c"],
    mask: Bool[Array, " b"],
    positive_weights: Float[HostArray, " c"] | None = None,
) -> Losses:
    """Multi-label: the mean over a row's known classes of `-p·y·log σ(z) - (1-y)·log σ(-z)`.

    Labels are 0, 1 (of any dtype) or -1, unknown; `p` is 1 unless `positive_weights` are given.

    >>> labels = jnp.array([[1, 0, -1]])
    >>> binary_cross_entropy(jnp.array([[0.0, 0.0, 50.0]]), labels, jnp.array([True])).round(3)
    Array([0.693], dtype=float32)
    """
    targets = labels.astype(jnp.float32)
    live = mask[:, None] & (targets >= 0)
    targets, logits = jnp.where(live, targets, 0.0), _cleared(logits, live)
    if_positive = jax.nn.softplus(-logits)
    if positive_weights is not None:
        if_positive = if_positive * jnp.asarray(positive_weights, jnp.float32)[None, :]
    losses = targets * if_positive + (1.0 - targets) * jax.nn.softplus(logits)
    return jnp.where(live, losses, 0.0).sum(1) / jnp.maximum(live.sum(1), 1).astype(jnp.float32)


def squared_error(predictions: Losses, targets: Losses, mask: Bool[Array, " b"]) -> Losses:
    """Regression: `(prediction - target)²`.

    >>> squared_error(jnp.array([3.0, 1.0]), jnp.array([1.0, jnp.nan]), jnp.array([True, False]))
    Array([4., 0.], dtype=float32)
    """
    return _error(predictions, targets, mask) ** 2


def absolute_error(predictions: Losses, targets: Losses, mask: Bool[Array, " b"]) -> Losses:
    """Regression with outliers: `|prediction - target|`, of gradient zero where they agree.

    >>> absolute_error(jnp.array([3.0, 1.0]), jnp.array([1.0, jnp.nan]), jnp.array([True, False]))
    Array([2., 0.], dtype=float32)
    """
    return jnp.abs(_error(predictions, targets, mask))


def huber(predictions: Losses, targets: Losses, mask: Bool[Array, " b"], delta: float = 1.0) -> Losses:
    """Regression between the two: `e²/2` up to `|e| = δ`, `δ·(|e| - δ/2)` beyond (Huber, 1964).

    >>> huber(jnp.array([0.5, 3.0]), jnp.zeros(2), jnp.array([True, True]))
    Array([0.125, 2.5 ], dtype=float32)
    """
    size = jnp.abs(_error(predictions, targets, mask))
    inside = jnp.minimum(size, delta)
    return inside * (size - 0.5 * inside)


def labelled(labels: Shaped[Array, "b *c"], mask: Bool[Array, " b"]) -> Bool[Array, " b"]:
    """Return the rows that count: under the mask, with at least one label that is not -1.

    >>> labelled(jnp.array([2, -1, 0]), jnp.array([True, True, False]))
    Array([ True, False, False], dtype=bool)
    """
    known = labels >= 0
    return mask & known.reshape(known.shape[0], -1).any(1)


def masked_mean(values: Losses, mask: Bool[Array, " b"]) -> Float[Array, ""]:
    """Average the values under the mask; nothing under it gives 0, and a zero gradient.

    >>> masked_mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False]))
    Array(2., dtype=float32)
    """
    return jnp.where(mask, values, 0.0).sum() / jnp.maximum(mask.sum(), 1).astype(values.dtype)


def class_weights(labels: Int[HostArray, " n"], num_classes: int) -> Float[np.ndarray, " num_classes"]:
    """Weigh classes inversely to how often they occur: `n / (present classes · count)`, on the host.

    scikit-learn's "balanced" weights. A class that never occurs gets 1; labels of -1 are left out. Raises
    ValueError for labels beyond `num_classes` and where no label is known.

    >>> class_weights(np.array([0, 0, 0, 1, -1]), 3)
    array([0.6666667, 2. , 1. ], dtype=float32)
    """
    known = np.asarray(labels)[np.asarray(labels) >= 0]
    if known.size == 0 or known.max() >= num_classes:
        found = "none" if known.size == 0 else f"{known.max()}"
        raise ValueError(f"expected known labels in [0, {num_classes}), got {found}")
    counts = np.bincount(known, minlength=num_classes)
    weights = known.size / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return np.where(counts > 0, weights, 1.0).astype(np.float32)


def positive_weights(labels: Shaped[HostArray, "n c"]) -> Float[np.ndarray, " c"]:
    """Weigh each class's positives to equal its negatives: `negatives / positives`, on the host.

    Labels are 0, 1 or -1, left out. A class without the one or the other gets 1.

    >>> positive_weights(np.array([[1, 0], [0, 0], [0, 0], [0, -1]]))
    array([3., 1.], dtype=float32)
    """
    table = np.asarray(labels)
    positives, negatives = (table == 1).sum(0), (table == 0).sum(0)
    both = (positives > 0) & (negatives > 0)
    return np.where(both, negatives / np.maximum(positives, 1), 1.0).astype(np.float32)


def _cleared(scores: Array, live: Array) -> Array:
    """Zeros in the dead places before the loss, so that NaN there cannot reach a gradient as 0 · NaN."""
    return jnp.where(live, scores.astype(jnp.float32), 0.0)


def _error(predictions: Array, targets: Array, mask: Array) -> Array:
    return jnp.where(mask, predictions.astype(jnp.float32) - targets.astype(jnp.float32), 0.0)
