"""Losses, one value a row: invalid rows cost exactly nothing, whatever they hold, and get no gradient.

Every loss is `(scores, labels, mask) -> [b]`, computed in float32. The rows of a padded batch are told by the
mask; a label of -1 is unknown. So a recipe reads

    valid = labeled(labels, mask)
    losses = cross_entropy(logits, labels, valid)
    return masked_mean(losses, valid), ({"loss": losses.sum(), "weight": valid.sum().astype(float)}, stats)

The contrastive ones take scored pairs. A row is one positive pair and its negatives: `(positive [b],
negatives [b, q], mask [b], negative_mask [b, q]) -> [b]`. Scores are logits. Negatives count by their mean
over the row's valid ones, so rows with few of them weigh like the others; without any, a loss of differences
is 0.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Shaped

from jsage.typing import HostArray

Losses = Float[Array, " b"]
Negatives = Float[Array, "b q"]
Mask = Bool[Array, " b"]
NegativeMask = Bool[Array, "b q"]


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

    Rows labeled -1 are invalid. Divide by the number of rows, not by the sum of weights: `class_weights`
    average to 1 over the rows that they were made from.

    >>> logits = jnp.array([[0.0, 0.0], [9.0, 9.0], [jnp.nan, 1.0]])
    >>> cross_entropy(logits, jnp.array([0, -1, 1]), jnp.array([True, True, False])).round(3)
    Array([0.693, 0. , 0. ], dtype=float32)
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing is a share of the label, 0 or more and below 1, got {smoothing}")
    valid = mask & (labels >= 0)
    labels = jnp.where(valid, labels, 0)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[1]), smoothing)
    losses = optax.safe_softmax_cross_entropy(_cleared(logits, valid[:, None]), targets)
    if weights is not None:
        losses = losses * jnp.asarray(weights, jnp.float32)[labels]
    return jnp.where(valid, losses, 0.0)


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
    valid = mask[:, None] & (targets >= 0)
    losses = optax.sigmoid_binary_cross_entropy(_cleared(logits, valid), _cleared(targets, valid))
    if positive_weights is not None:
        losses = losses * jnp.where(targets > 0, jnp.asarray(positive_weights, jnp.float32)[None, :], 1.0)
    return jnp.where(valid, losses, 0.0).sum(1) / jnp.maximum(valid.sum(1), 1).astype(jnp.float32)


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
    return optax.huber_loss(_error(predictions, targets, mask), delta=delta)


def skip_gram(
    positive: Losses,
    negatives: Negatives,
    mask: Mask,
    negative_mask: NegativeMask | None = None,
    Q: float = 20.0,
) -> Losses:
    """The graph-based loss of GraphSAGE: `-log σ(z_u·z_v) - Q · E_n log σ(-z_u·z_n)`.

    Hamilton et al. (2017), equation 1, with the mean over the row's negatives as the expectation. With `q`
    negatives a row, `Q = q` is the sum over them, which the 2017 code takes (`q = 20`).

    >>> skip_gram(jnp.zeros(2), jnp.zeros((2, 3)), jnp.array([True, False]), Q=1.0).round(3)
    Array([1.386, 0.   ], dtype=float32)
    """
    positive, negatives, valid = _cleared_pairs(positive, negatives, mask, negative_mask)
    return jnp.where(
        mask, jax.nn.softplus(-positive) + Q * _mean_of_valid(jax.nn.softplus(negatives), valid), 0.0
    )


def margin(
    positive: Losses,
    negatives: Negatives,
    mask: Mask,
    negative_mask: NegativeMask | None = None,
    delta: float = 1.0,
) -> Losses:
    """Max-margin: `E_n max(0, z_u·z_n - z_u·z_v + Δ)`; its gradient at the corner is 0.

    PinSage (Ying et al., 2018), equation 1, where `Δ` is a hyperparameter.

    >>> margin(jnp.array([2.0]), jnp.array([[1.5, 0.0]]), jnp.array([True]))
    Array([0.25], dtype=float32)
    """
    positive, negatives, valid = _cleared_pairs(positive, negatives, mask, negative_mask)
    return _mean_of_valid(jax.nn.relu(negatives - positive[:, None] + delta), valid)


def bpr(
    positive: Losses, negatives: Negatives, mask: Mask, negative_mask: NegativeMask | None = None
) -> Losses:
    """Bayesian personalized ranking: `E_n -log σ(z_u·z_v - z_u·z_n)`, without the weight decay.

    Rendle et al. (2009), BPR-Opt in section 4.1; there with one negative a row.

    >>> bpr(jnp.array([1.0, 0.0]), jnp.array([[1.0], [jnp.nan]]), jnp.array([True, False])).round(3)
    Array([0.693, 0.   ], dtype=float32)
    """
    positive, negatives, valid = _cleared_pairs(positive, negatives, mask, negative_mask)
    return _mean_of_valid(jax.nn.softplus(negatives - positive[:, None]), valid)


def link_cross_entropy(
    positive: Losses, negatives: Negatives, mask: Mask, negative_mask: NegativeMask | None = None
) -> Losses:
    """Links against non-links: the mean of `-log σ` of the positive and `-log (1 - σ)` of the negatives.

    Each of a row's `1 + q` valid links weighs the same, so with `q` negatives in every row the mean over rows
    is the binary cross-entropy over all links. `skip_gram` with `Q = 1` weighs the two kinds equally.

    >>> link_cross_entropy(jnp.zeros(1), jnp.zeros((1, 3)), jnp.array([True])).round(3)
    Array([0.693], dtype=float32)
    """
    positive, negatives, valid = _cleared_pairs(positive, negatives, mask, negative_mask)
    total = jax.nn.softplus(-positive) + jnp.where(valid, jax.nn.softplus(negatives), 0.0).sum(1)
    return jnp.where(mask, total / (1 + valid.sum(1)).astype(jnp.float32), 0.0)


def dgi(positive: Losses, negative: Losses, mask: Mask) -> Losses:
    """Deep Graph Infomax: `-(log D(h_v, s) + log (1 - D(h̃_v, s))) / 2`, where `D` is `σ` of a score.

    Veličković et al. (2019), equation 1, negated, with as many corrupted nodes as true ones.

    >>> dgi(jnp.zeros(2), jnp.array([0.0, jnp.nan]), jnp.array([True, False])).round(3)
    Array([0.693, 0.   ], dtype=float32)
    """
    return link_cross_entropy(positive, negative[:, None], mask)


def info_nce(
    scores: Float[Array, "b b"],
    mask: Mask,
    negative_mask: Bool[Array, "b b"] | None = None,
    temperature: float | Float[Array, ""] = 1.0,
) -> Losses:
    """In-batch softmax: `-log (exp(s_ii / τ) / Σ_j exp(s_ij / τ))`, each row's positive on the diagonal.

    `j` runs over `i` itself and the valid rows that `negative_mask[i]` allows (None: all of them): leave out
    what is a true pair of `i` too. For the loss in both directions add the one of `scores.T`. Raises
    ValueError for a temperature, given as a number, that is not positive.

    van den Oord et al. (2018), equation 4; with a temperature Chen et al. (2020), equation 1.

    >>> info_nce(jnp.array([[1.0, 1.0], [5.0, 5.0]]), jnp.array([True, True])).round(3)
    Array([0.693, 0.693], dtype=float32)
    """
    if isinstance(temperature, float | int) and not temperature > 0:
        raise ValueError(f"expected a positive temperature, got {temperature}")
    own = jnp.eye(mask.shape[0], dtype=bool)
    valid = mask[:, None] & mask[None, :]
    if negative_mask is not None:
        valid = valid & (negative_mask | own)
    logits = _cleared(scores, valid) / temperature
    logits = jnp.where(valid | own, logits, -jnp.inf)
    return jnp.where(mask, -jnp.diagonal(jax.nn.log_softmax(logits, axis=1)), 0.0)


def labeled(labels: Shaped[Array, "b *c"], mask: Bool[Array, " b"]) -> Bool[Array, " b"]:
    """Return the rows that count: under the mask, with at least one label that is not -1.

    >>> labeled(jnp.array([2, -1, 0]), jnp.array([True, True, False]))
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
    ValueError for labels beyond `num_classes` and where no label is known, ImportError without scikit-learn.

    >>> class_weights(np.array([0, 0, 0, 1, -1]), 3)
    array([0.6666667, 2. , 1. ], dtype=float32)
    """
    known = np.asarray(labels)[np.asarray(labels) >= 0]
    if known.size == 0 or known.max() >= num_classes:
        found = "none" if known.size == 0 else f"{known.max()}"
        raise ValueError(f"expected known labels in [0, {num_classes}), got {found}")
    try:
        from sklearn.utils.class_weight import compute_class_weight
    except ImportError as error:
        raise ImportError("class_weights needs scikit-learn: pip install 'jsage[metrics]'") from error
    weights, present = np.ones(num_classes, np.float32), np.unique(known)
    weights[present] = compute_class_weight("balanced", classes=present, y=known)
    return weights


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


def _cleared(scores: Array, valid: Array) -> Array:
    """Zeros in the invalid places before the loss, so that NaN there cannot reach a gradient as 0 · NaN."""
    return jnp.where(valid, scores.astype(jnp.float32), 0.0)


def _error(predictions: Array, targets: Array, mask: Array) -> Array:
    return jnp.where(mask, predictions.astype(jnp.float32) - targets.astype(jnp.float32), 0.0)


def _cleared_pairs(
    positive: Array, negatives: Array, mask: Array, negative_mask: Array | None
) -> tuple[Array, Array, Array]:
    """Scores, 0 in the invalid places, and the valid negatives."""
    valid = jnp.broadcast_to(mask[:, None], negatives.shape)
    if negative_mask is not None:
        valid = valid & negative_mask
    return _cleared(positive, mask), _cleared(negatives, valid), valid


def _mean_of_valid(values: Array, valid: Array) -> Array:
    """The mean over each row's valid values, 0 where there are none."""
    count = jnp.maximum(valid.sum(1), 1).astype(values.dtype)
    return jnp.where(valid, values, 0.0).sum(1) / count
