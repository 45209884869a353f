"""Losses of scored pairs, one value a row: what is dead costs exactly nothing, whatever it holds.

A row is one positive pair and its negatives: `(positive [b], negatives [b, q], mask [b], negative_mask
[b, q]) -> [b]`, in float32. Scores are logits. Negatives count by their mean over the row's live ones, so
rows with few of them weigh like the others; without any, a loss of differences is 0. Average the rows by
`jsage.losses.masked_mean`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Scores = Float[Array, " b"]
Negatives = Float[Array, "b q"]
Live = Bool[Array, " b"]
LiveNegatives = Bool[Array, "b q"]


def skip_gram(
    positive: Scores,
    negatives: Negatives,
    mask: Live,
    negative_mask: LiveNegatives | None = None,
    Q: float = 20.0,
) -> Scores:
    """The graph-based loss of GraphSAGE: `-log σ(z_u·z_v) - Q · E_n log σ(-z_u·z_n)`.

    Hamilton et al. (2017), equation 1, with the mean over the row's negatives as the expectation. With `q`
    negatives a row, `Q = q` is the sum over them, which the 2017 code takes (`q = 20`).

    >>> skip_gram(jnp.zeros(2), jnp.zeros((2, 3)), jnp.array([True, False]), Q=1.0).round(3)
    Array([1.386, 0.   ], dtype=float32)
    """
    positive, negatives, live = _cleared(positive, negatives, mask, negative_mask)
    return jnp.where(mask, jax.nn.softplus(-positive) + Q * _mean(jax.nn.softplus(negatives), live), 0.0)


def margin(
    positive: Scores,
    negatives: Negatives,
    mask: Live,
    negative_mask: LiveNegatives | None = None,
    delta: float = 1.0,
) -> Scores:
    """Max-margin: `E_n max(0, z_u·z_n - z_u·z_v + Δ)`; its gradient at the corner is 0.

    PinSage (Ying et al., 2018), equation 1, where `Δ` is a hyperparameter.

    >>> margin(jnp.array([2.0]), jnp.array([[1.5, 0.0]]), jnp.array([True]))
    Array([0.25], dtype=float32)
    """
    positive, negatives, live = _cleared(positive, negatives, mask, negative_mask)
    return _mean(jax.nn.relu(negatives - positive[:, None] + delta), live)


def bpr(
    positive: Scores, negatives: Negatives, mask: Live, negative_mask: LiveNegatives | None = None
) -> Scores:
    """Bayesian personalised ranking: `E_n -log σ(z_u·z_v - z_u·z_n)`, without the weight decay.

    Rendle et al. (2009), BPR-Opt in section 4.1; there with one negative a row.

    >>> bpr(jnp.array([1.0, 0.0]), jnp.array([[1.0], [jnp.nan]]), jnp.array([True, False])).round(3)
    Array([0.693, 0.   ], dtype=float32)
    """
    positive, negatives, live = _cleared(positive, negatives, mask, negative_mask)
    return _mean(jax.nn.softplus(negatives - positive[:, None]), live)


def link_cross_entropy(
    positive: Scores, negatives: Negatives, mask: Live, negative_mask: LiveNegatives | None = None
) -> Scores:
    """Links against non-links: the mean of `-log σ` of the positive and `-log (1 - σ)` of the negatives.

    Each of a row's `1 + q` live links weighs the same, so with `q` negatives in every row the mean over rows
    is the binary cross-entropy over all links. `skip_gram` with `Q = 1` weighs the two kinds equally.

    >>> link_cross_entropy(jnp.zeros(1), jnp.zeros((1, 3)), jnp.array([True])).round(3)
    Array([0.693], dtype=float32)
    """
    positive, negatives, live = _cleared(positive, negatives, mask, negative_mask)
    total = jax.nn.softplus(-positive) + jnp.where(live, jax.nn.softplus(negatives), 0.0).sum(1)
    return jnp.where(mask, total / (1 + live.sum(1)).astype(jnp.float32), 0.0)


def dgi(positive: Scores, negative: Scores, mask: Live) -> Scores:
    """Deep Graph Infomax: `-(log D(h_v, s) + log (1 - D(h̃_v, s))) / 2`, where `D` is `σ` of a score.

    Veličković et al. (2019), equation 1, negated, with as many corrupted nodes as true ones.

    >>> dgi(jnp.zeros(2), jnp.array([0.0, jnp.nan]), jnp.array([True, False])).round(3)
    Array([0.693, 0.   ], dtype=float32)
    """
    return link_cross_entropy(positive, negative[:, None], mask)


def info_nce(
    scores: Float[Array, "b b"],
    mask: Live,
    negative_mask: Bool[Array, "b b"] | None = None,
    temperature: float | Float[Array, ""] = 1.0,
) -> Scores:
    """In-batch softmax: `-log (exp(s_ii / τ) / Σ_j exp(s_ij / τ))`, each row's positive on the diagonal.

    `j` runs over `i` itself and the live rows that `negative_mask[i]` allows (None: all of them): leave out
    what is a true pair of `i` too. For the loss in both directions add the one of `scores.T`. Raises
    ValueError for a temperature, given as a number, that is not positive.

    van den Oord et al. (2018), equation 4; with a temperature Chen et al. (2020), equation 1.

    >>> info_nce(jnp.array([[1.0, 1.0], [5.0, 5.0]]), jnp.array([True, True])).round(3)
    Array([0.693, 0.693], dtype=float32)
    """
    if isinstance(temperature, float | int) and not temperature > 0:
        raise ValueError(f"expected a positive temperature, got {temperature}")
    own = jnp.eye(mask.shape[0], dtype=bool)
    live = mask[:, None] & mask[None, :]
    if negative_mask is not None:
        live = live & (negative_mask | own)
    logits = jnp.where(live, scores.astype(jnp.float32), 0.0) / temperature
    logits = jnp.where(live | own, logits, -jnp.inf)
    return jnp.where(mask, -jnp.diagonal(jax.nn.log_softmax(logits, axis=1)), 0.0)


def _cleared(
    positive: Array, negatives: Array, mask: Array, negative_mask: Array | None
) -> tuple[Array, Array, Array]:
    """Scores, 0 in the dead places, so that NaN there cannot reach a gradient; and the live negatives."""
    live = jnp.broadcast_to(mask[:, None], negatives.shape)
    if negative_mask is not None:
        live = live & negative_mask
    positive = jnp.where(mask, positive.astype(jnp.float32), 0.0)
    return positive, jnp.where(live, negatives.astype(jnp.float32), 0.0), live


def _mean(values: Array, live: Array) -> Array:
    """The mean over each row's live values, 0 where there are none."""
    count = jnp.maximum(live.sum(1), 1).astype(values.dtype)
    return jnp.where(live, values, 0.0).sum(1) / count
