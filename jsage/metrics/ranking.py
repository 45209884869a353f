"""How high true links come among others: ranks, the metrics made of them, and ranking against all candidates.

A rank is kept as two whole numbers, how many score higher and how many score the same, so that ties are
counted exactly at any size. Every metric gives a tie its expectation, or its mean rank, over the orders of
the tied. NaN counts against the target: a NaN target is last, a NaN competitor is above. All runs under jit.
Area under the curve and average precision are in `jsage.metrics`.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from jsage._internal.arrays import take

ScoreFn: TypeAlias = Callable[[Int[Array, " chunk"]], Float[Array, "q chunk"]]
"""`ids -> scores`: every query against the candidates of these ids."""


@runtime_checkable
class Known(Protocol):
    """Candidates to leave out, as a `Graph` holds them: row `r` is `indices[indptr[r]:indptr[r + 1]]`."""

    @property
    def indptr(self) -> Int[Array, " rows+1"]:
        """Where each row begins."""
        ...

    @property
    def indices(self) -> Int[Array, " num_known"]:
        """Candidate ids, ascending within a row."""
        ...


class Ranks(NamedTuple):
    """Where targets stand among their competitors.

    >>> Ranks(jnp.array([0, 3]), jnp.array([0, 1])).rank
    Array([1. , 4.5], dtype=float32)
    """

    above: Int[Array, "..."]
    """How many competitors score higher."""
    tied: Int[Array, "..."]
    """How many competitors score the same."""

    @property
    def rank(self) -> Float[Array, "..."]:
        """`1 + above + tied / 2`, the mean of the best and the worst rank, as OGB's evaluator has it."""
        return 1.0 + self.above.astype(jnp.float32) + 0.5 * self.tied.astype(jnp.float32)


def ranks(
    positive: Float[Array, " b"], negatives: Float[Array, "b q"], mask: Bool[Array, "b q"] | None = None
) -> Ranks:
    """Each positive among the negatives of its own row; those under mask False do not count.

    >>> ranks(jnp.array([2.0]), jnp.array([[3.0, 2.0, 1.0]])).rank
    Array([2.5], dtype=float32)
    """
    valid = jnp.ones(negatives.shape, bool) if mask is None else mask
    return Ranks(*_compared(positive, negatives, valid))


def ranks_within(scores: Float[Array, "u n"], mask: Bool[Array, "u n"] | None = None) -> Ranks:
    """Each entry among the others of its row; where mask is False, neither ranked nor counted.

    What such an entry's rank holds means nothing: `recall` and `ndcg` do not read it.

    >>> ranks_within(jnp.array([[1.0, 3.0, 3.0]])).rank
    Array([[3. , 1.5, 1.5]], dtype=float32)
    """
    valid = jnp.ones(scores.shape, bool) if mask is None else mask
    scores = jnp.where(valid, scores, -jnp.inf)
    invalid, ascending = (~valid).sum(1, dtype=jnp.int32)[:, None], jnp.sort(scores, axis=1)
    first, after = (
        jax.vmap(lambda row, x, side=side: jnp.searchsorted(row, x, side=side))(ascending, scores)
        for side in ("left", "right")
    )
    above, tied = scores.shape[1] - after, after - jnp.maximum(first, invalid) - 1
    nothing = jnp.isnan(scores)
    return Ranks(jnp.where(nothing, scores.shape[1] - invalid - 1, above), jnp.where(nothing, 0, tied))


def mrr(ranks: Ranks, mask: Bool[Array, "..."] | None = None) -> Float[Array, ""]:
    """The mean of `1 / rank` over the valid targets: the mean reciprocal rank. No valid target gives 0.

    >>> mrr(Ranks(jnp.array([0, 3]), jnp.array([0, 0])))
    Array(0.625, dtype=float32)
    """
    return _mean(1.0 / ranks.rank, mask)


def hits(ranks: Ranks, k: int, mask: Bool[Array, "..."] | None = None) -> Float[Array, ""]:
    """The share of the valid targets with a rank of at most `k`: Hits@k where each has its own competitors.

    >>> hits(Ranks(jnp.array([0, 3]), jnp.array([0, 0])), 3)
    Array(0.5, dtype=float32)
    """
    _check(k)
    return _mean((ranks.rank <= k).astype(jnp.float32), mask)


def hits_above(
    positive: Float[Array, " p"],
    negatives: Float[Array, " n"],
    k: int,
    mask: Bool[Array, " p"] | None = None,
    negative_mask: Bool[Array, " n"] | None = None,
) -> Float[Array, ""]:
    """The share of the valid positives that score strictly above the `k`-th best of all negatives.

    Hits@k as OGB has it for ogbl-ppa, -collab and -ddi (Hu et al., 2020); 1 with fewer than `k` negatives.

    >>> hits_above(jnp.array([0.9, 0.5]), jnp.array([0.7, 0.5, 0.1]), 2)
    Array(0.5, dtype=float32)
    """
    _check(k)
    valid = jnp.ones(negatives.shape, bool) if negative_mask is None else negative_mask
    if negatives.shape[0] < k:
        return _mean(jnp.ones(positive.shape, jnp.float32), mask)
    scores = jnp.where(valid, jnp.where(jnp.isnan(negatives), jnp.inf, negatives), -jnp.inf)
    hit = (positive > jax.lax.top_k(scores, k)[0][-1]) | (valid.sum() < k)
    return _mean(hit.astype(jnp.float32), mask)


def recall(ranks: Ranks, relevant: Bool[Array, "u m"], k: int) -> Float[Array, " u"]:
    """Each user's share of relevant items that come among the first `k`; 0 for a user without any.

    `ranks` are `[u, m]`: of every item (`ranks_within`), or of the relevant ones alone, padded under False.
    Average over the users that have one.

    >>> recall(Ranks(jnp.array([[0, 4, 9]]), jnp.zeros((1, 3), int)), jnp.array([[True, True, False]]), 3)
    Array([0.5], dtype=float32)
    """
    alike = jnp.where(relevant, ranks.tied, 0) + 1
    inside = jnp.clip(_check(k) - ranks.above, 0, alike)  # places of the tied that are among the first k
    found = jnp.where(relevant, inside.astype(jnp.float32) / alike.astype(jnp.float32), 0.0).sum(1)
    return found / jnp.maximum(relevant.sum(1), 1).astype(jnp.float32)


def ndcg(ranks: Ranks, gains: Shaped[Array, "u m"], k: int) -> Float[Array, " u"]:
    """Each user's `Σ gain / log2(1 + rank)` over the first `k` ranks, divided by that of the best order.

    Gains are at least 0, and 0 where an item is irrelevant or padding; booleans will do. Without a gain it
    is 0. `ranks` as in `recall`. Järvelin and Kekäläinen (2002), as scikit-learn's `ndcg_score` has it:
    linear gains, ties averaged.

    >>> ndcg(Ranks(jnp.array([[0, 2]]), jnp.zeros((1, 2), int)), jnp.array([[1.0, 1.0]]), 10).round(3)
    Array([0.92], dtype=float32)
    """
    discount = 1.0 / np.log2(np.arange(2, _check(k) + 2))
    gains = gains.astype(jnp.float32)
    best = jax.lax.top_k(gains, min(k, gains.shape[1]))[0]
    ideal = (best * jnp.asarray(discount[: best.shape[1]], jnp.float32)[None]).sum(1)
    reached = jnp.where(gains > 0, gains * _expected(ranks, discount), 0.0).sum(1)
    return jnp.where(ideal > 0, reached / jnp.where(ideal > 0, ideal, 1.0), 0.0)


def rank_all(
    score: ScoreFn,
    targets: Int[Array, " q"],
    num_candidates: int,
    *,
    known: Known | None = None,
    rows: Int[Array, " q"] | None = None,
    chunk: int = 1024,
) -> Ranks:
    """Each query's target among all of `0 .. num_candidates - 1`, a chunk of candidates at a time.

    `score(ids)` gives `[q, chunk]`, for instance `lambda ids: queries @ table[ids].T`. The target never
    competes with itself. With `known`, neither do the candidates in the query's row (`rows`) of it: the
    filtered setting of Bordes et al. (2013), section 4.2. `known` is a `Graph` (its in-neighbors are the
    candidates) with rows sorted by `jsage.graph.sort_rows`.

    It holds `[q, chunk]` scores at once, and scores the targets beforehand, in chunks too: `q` columns
    more, so pass queries by the hundred. Raises ValueError for scores of another shape.

    >>> table = jnp.array([[1.0], [3.0], [2.0], [3.0]])
    >>> rank_all(lambda ids: jnp.ones((1, 1)) @ table[ids].T, jnp.array([2]), 4, chunk=2).rank
    Array([3.], dtype=float32)
    """
    if min(chunk, num_candidates) < 1:
        raise ValueError(f"expected candidates and a chunk of at least 1, got {num_candidates} and {chunk}")
    if (known is None) != (rows is None):
        raise ValueError("known candidates are read in the row of each query: pass both known and rows")
    q, size = targets.shape[0], min(chunk, num_candidates)
    lead = -(-q // size)  # chunks of targets, which come first
    queued = jnp.pad(targets, (0, lead * size - q))
    query, column = jnp.arange(q, dtype=jnp.int32)[:, None], jnp.arange(size, dtype=jnp.int32)

    def step(i, state):  # one body for both, so that equal scores come out equal to the last bit
        own, above, tied = state
        first = (i - lead) * size
        at = jax.lax.dynamic_slice_in_dim(queued, i * size, size) if lead else column
        ids = jnp.where(i < lead, at, jnp.minimum(first + column, num_candidates - 1))
        scores = _scores(score, ids, q)
        place = query - i * size  # in a chunk of targets, query i's own column
        mine = (i < lead) & (place >= 0) & (place < size)
        found = jnp.take_along_axis(scores, jnp.clip(place, 0, size - 1), axis=1)
        own = jnp.where(mine, found, own)
        valid = (i >= lead) & (first + column < num_candidates)[None] & (ids[None] != targets[:, None])
        if known is not None and rows is not None:
            valid = valid & ~_listed(known, rows, first, size)
        more = _compared(own[:, 0], scores, valid)
        return own, above + more[0], tied + more[1]

    dtype = jax.eval_shape(score, column).dtype
    start = jnp.zeros((q, 1), dtype), jnp.zeros(q, jnp.int32), jnp.zeros(q, jnp.int32)
    return Ranks(*jax.lax.fori_loop(0, lead + -(-num_candidates // size), step, start)[1:])


def _scores(score: ScoreFn, ids: Array, q: int) -> Array:
    scores = score(ids)
    if scores.shape != (q, ids.shape[0]):
        raise ValueError(
            f"expected scores of {q} queries x {ids.shape[0]} candidates, got shape {scores.shape}: "
            "score(ids) must give one row a target and one column an id"
        )
    return scores


def _listed(known: Known, rows: Array, first: Array, size: int) -> Bool[Array, "q size"]:
    """Which of the candidates `first .. first + size - 1` are in each row of `known`."""
    listed = jnp.zeros((rows.shape[0], size), bool)
    if known.indices.shape[0] == 0 or rows.shape[0] == 0:
        return listed
    start, stop = (_before(known, rows, bound) for bound in (first, first + size))
    ends = jnp.cumsum(stop - start)  # the entries of all rows, numbered through

    def mark(i, listed):
        number = i * size + jnp.arange(size, dtype=jnp.int32)
        row = jnp.searchsorted(ends, number, side="right")
        legal = jnp.minimum(row, rows.shape[0] - 1)
        entry = jnp.where(number < ends[-1], take(stop, legal) - take(ends, legal) + number, 0)
        return listed.at[row, take(known.indices, entry) - first].set(True, mode="drop")

    return jax.lax.fori_loop(0, -(-ends[-1] // size), mark, listed)


def _before(known: Known, rows: Array, bound: Array) -> Int[Array, " q"]:
    """The position in `indices` of each row's first entry of at least `bound`, by binary search."""

    def halve(_, span):
        low, high = span
        middle = low + (high - low) // 2
        less = take(known.indices, jnp.minimum(middle, known.indices.shape[0] - 1)) < bound
        right = (low < high) & less
        return jnp.where(right, middle + 1, low), jnp.where(right, high, middle)

    span = take(known.indptr, rows), take(known.indptr, rows + 1)
    return jax.lax.fori_loop(0, known.indices.shape[0].bit_length(), halve, span)[0]


def _compared(own: Array, others: Array, valid: Array) -> tuple[Array, Array]:
    """How many valid others are above each row's own score, NaN being above, and how many equal it."""
    own = own[:, None]
    above, tied = valid & ~(others <= own), valid & (others == own)
    return above.sum(1, dtype=jnp.int32), tied.sum(1, dtype=jnp.int32)


def _expected(ranks: Ranks, worth: np.ndarray) -> Float[Array, "..."]:
    """The mean worth of the places that a target may take among the tied; beyond the last, 0."""
    sums = np.concatenate([[0.0], np.cumsum(worth)])
    high = sums.astype(np.float32)
    low = (sums - high).astype(np.float32)  # what float32 leaves out of the sums
    start, stop = (jnp.clip(place, 0, len(worth)) for place in (ranks.above, ranks.above + ranks.tied + 1))
    total = sum(take(table, stop) - take(table, start) for table in (jnp.asarray(high), jnp.asarray(low)))
    return total / (ranks.tied + 1).astype(jnp.float32)


def _mean(values: Array, mask: Array | None) -> Float[Array, ""]:
    valid = jnp.ones(values.shape, bool) if mask is None else mask
    return jnp.where(valid, values, 0.0).sum() / jnp.maximum(valid.sum(), 1).astype(jnp.float32)


def _check(k: int) -> int:
    if k < 1:
        raise ValueError(f"k is the number of first places, at least 1, got {k}")
    return k
