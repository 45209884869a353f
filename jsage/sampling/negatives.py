"""Negatives of pairs: what they are drawn from, which ones a batch holds, and true edges kept out of them.

A sampler is called `sampler(key, shape) -> ids`, int32 of that shape (`by_side` is told for which nodes,
too). All of them here are tuples of arrays: pass them to the jitted step as arguments. They are made on the
host, once, and draw inside jit.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt32

from jsage._internal.arrays import take
from jsage._internal.checks import INT32, check_ids
from jsage.graph import Graph, has_edge, in_degrees
from jsage.typing import HostArray, PRNGKey

Shape: TypeAlias = tuple[int, ...]
NegativeSampler: TypeAlias = Callable[[PRNGKey, Shape], Int[Array, "..."]]
"""`(key, shape) -> ids`"""
Weights: TypeAlias = HostArray | Sequence[float] | Sequence[int]
Ends: TypeAlias = tuple[Int[Array, "b num"], Int[Array, "b num"]]

ONE = 2**32


class AliasTable(NamedTuple):
    """Ids `0 .. n - 1` drawn in proportion to weights. Make one with `alias_table`.

    All slots are equally likely; slot `i` gives `i` if a random word is below `keep[i]`, else `alias[i]`.
    """

    keep: UInt32[Array, " n"]
    alias: Int[Array, " n"]

    def __call__(self, key: PRNGKey, shape: Shape) -> Int[Array, "..."]:
        """Draw ids: `sample_alias`."""
        return sample_alias(key, self, shape)


class Uniform(NamedTuple):
    """The ids `start .. start + size - 1`, equally likely. Make one with `uniform`."""

    start: Int[Array, ""]
    size: Int[Array, ""]

    def __call__(self, key: PRNGKey, shape: Shape) -> Int[Array, "..."]:
        """Draw ids, without rounding up to 2^31 of them."""
        return self.start + jax.random.randint(key, shape, 0, self.size)


class Choice(NamedTuple):
    """The ids of a list, at positions that another sampler draws. Make one with `choice`."""

    nodes: Int[Array, " n"]
    position: Uniform | AliasTable

    def __call__(self, key: PRNGKey, shape: Shape) -> Int[Array, "..."]:
        """Draw ids of the list."""
        return take(self.nodes, self.position(key, shape))


class BySide(NamedTuple):
    """Nodes of the same side as given ones: those that could be in their place. Make one with `by_side`.

    With `functools.partial(sampler, like=...)` it is a sampler like all others.
    """

    side: Int[Array, " num_nodes"]
    start: Int[Array, " num_sides"]
    """Where the nodes of each side begin in `nodes`."""
    size: Int[Array, " num_sides"]
    nodes: Int[Array, " num_nodes"]
    """All nodes, one side behind the other."""
    table: AliasTable
    """One for each side, behind one another; its slots are positions in `nodes`."""

    def __call__(self, key: PRNGKey, shape: Shape, *, like: Int[Array, "*#shape"]) -> Int[Array, "*shape"]:
        """Draw ids of `shape`, each of the side of its node in `like`, which is broadcast to it."""
        pick, word = jax.random.split(key)
        side = take(self.side, jnp.broadcast_to(like, shape))
        slot = take(self.start, side) + jax.random.randint(pick, shape, 0, take(self.size, side))
        own = jax.random.bits(word, shape, jnp.uint32) < take(self.table.keep, slot)
        return take(self.nodes, jnp.where(own, slot, take(self.table.alias, slot)))


def alias_table(weights: Weights) -> AliasTable:
    """The table that draws `i` with probability `weights[i] / sum(weights)`, in one step whatever `n` is.

    Walker (1977), with the pairs of Vose (1991), made on the host by one sweep over running sums
    (Hübschle-Schneider & Sanders, 2022). All in whole numbers: weights are rounded to shares that sum to
    `n · 2^32`, for which the table is exact, so that each probability is off by less than `2 / (n · 2^32)`.
    A weight of 0 is never drawn. Raises ValueError for weights that are negative, not finite, or all 0.

    >>> table = alias_table([1.0, 0.0, 3.0, 4.0])  # 1/2, 0, 3/2 and 2 slots
    >>> table.alias.tolist(), (np.asarray(table.keep) / 2**32).round(3).tolist()
    ([2, 3, 2, 3], [0.5, 0.0, 1.0, 1.0])
    """
    keep, alias = _slots(weights)
    return AliasTable(jnp.asarray(keep), jnp.asarray(alias, jnp.int32))


def sample_alias(key: PRNGKey, table: AliasTable, shape: Shape) -> Int[Array, "..."]:
    """Independent ids from an alias table: two random numbers and two reads each, inside jit.

    >>> sample_alias(jax.random.key(0), alias_table([0.0, 1.0, 0.0]), (2, 3))
    Array([[1, 1, 1],
           [1, 1, 1]], dtype=int32)
    """
    pick, side = jax.random.split(key)
    slot = jax.random.randint(pick, shape, 0, table.keep.shape[0])
    own = jax.random.bits(side, shape, jnp.uint32) < take(table.keep, slot)
    return jnp.where(own, slot, take(table.alias, slot))


def uniform(num_nodes: int, *, start: int = 0) -> Uniform:
    """The sampler of the ids `start .. start + num_nodes - 1`, equally likely: for instance the items.

    >>> ids = uniform(3, start=10)(jax.random.key(0), (1000,))
    >>> int(ids.min()), int(ids.max())
    (10, 12)
    """
    if num_nodes < 1 or start < 0 or start + num_nodes > 2**31 - 1:
        raise ValueError(
            f"expected ids in 0 .. 2^31 - 2, at least one, got {num_nodes} of them from {start} on"
        )
    return Uniform(jnp.int32(start), jnp.int32(num_nodes))


def choice(nodes: HostArray | Sequence[int], weights: Weights | None = None) -> Choice:
    """The sampler of the ids listed (the nodes of one type): equally likely, or in proportion to `weights`.

    >>> choice([7, 3, 5], [0.0, 0.0, 2.0])(jax.random.key(0), (3,))
    Array([5, 5, 5], dtype=int32)
    """
    ids = check_ids(nodes, INT32, "nodes")
    if not len(ids):
        raise ValueError("nodes must list at least one node, got none")
    if weights is not None and np.shape(weights) != ids.shape:
        raise ValueError(f"expected one weight a node, {len(ids)}, got shape {np.shape(weights)}")
    position = uniform(len(ids)) if weights is None else alias_table(weights)
    return Choice(jnp.asarray(ids), position)


def by_side(sides: HostArray | Sequence[int], weights: Weights | None = None) -> BySide:
    """The sampler of nodes on the side (`jsage.graph.node_sides`) of the node that they stand for.

    In a graph of users and items a negative is then a user and an item, as its positive is: one that could be
    joined. Evenly, or in proportion to `weights`, one a node; evenly on a side whose weights are all 0.

    >>> sampler = by_side([0, 0, 1, 1], [1.0, 0.0, 0.0, 2.0])
    >>> sampler(jax.random.key(0), (2, 3), like=jnp.array([[1], [2]]))
    Array([[0, 0, 0],
           [3, 3, 3]], dtype=int32)
    """
    side = check_ids(sides, INT32, "sides", what="sides")
    weight = np.ones(len(side)) if weights is None else np.asarray(weights, np.float64)
    if not len(side) or weight.shape != side.shape:
        raise ValueError(f"expected one side and one weight a node, got {side.shape} and {weight.shape}")
    size = np.bincount(side)
    start, nodes = np.cumsum(size) - size, np.argsort(side, kind="stable")
    parts = [weight[nodes[at : at + num]] for at, num in zip(start, size, strict=True) if num]
    slots = [_slots(part if part.any() else np.ones(len(part))) for part in parts]
    keep, alias = (np.concatenate(arrays) for arrays in zip(*slots, strict=True))
    rows = (array.astype(np.int32) for array in (side, start, size, nodes, alias + np.repeat(start, size)))
    side, start, size, nodes, alias = jax.device_put(tuple(rows))
    return BySide(side, start, size, nodes, AliasTable(jax.device_put(keep), alias))


def by_degree(
    graph: Graph, power: float = 0.75, *, nodes: HostArray | Sequence[int] | None = None
) -> AliasTable | Choice:
    """The sampler of nodes in proportion to `in_degree ** power`, of all nodes or of those listed.

    The noise distribution of word2vec (Mikolov et al., 2013, §2.2) that GraphSAGE's loss draws negatives from
    (Hamilton et al., 2017, equation 1). Nodes without edges are never drawn, unless `power` is 0.

    >>> from jsage.graph import from_edges
    >>> star = from_edges([1, 2, 3, 0], [0, 0, 0, 1], num_nodes=4)
    >>> by_degree(star, nodes=[1, 2])(jax.random.key(0), (3,))
    Array([1, 1, 1], dtype=int32)
    """
    weights = np.asarray(in_degrees(graph), np.float64) ** power
    if nodes is None:
        return alias_table(weights)
    ids = check_ids(nodes, graph.num_nodes, "nodes")
    return choice(ids, weights[ids])


def in_batch(src: Int[Array, " b"], dst: Int[Array, " b"], mask: Bool[Array, " b"]) -> Bool[Array, "b b"]:
    """`[i, j]`: whether `dst[j]` is a negative of `src[i]`: both rows valid, the two no pair of the batch.

    So it is False on the diagonal, on copies of the positive, and on all other valid positives of a source
    that comes more than once. It does not know the graph's other edges, nor whether `dst[j]` is `src[i]`
    itself: add `& ~has_edge(...)` or `& (src[:, None] != dst[None])`.

    >>> in_batch(jnp.array([0, 0, 1, 9]), jnp.array([5, 6, 7, 9]), jnp.array([True, True, True, False]))
    Array([[False, False,  True, False],
           [False, False,  True, False],
           [ True,  True, False, False],
           [False, False, False, False]], dtype=bool)
    """
    row, column = ((ids[:, None] == ids[None]).argmax(1) for ids in (src, dst))  # the first copy
    positive = jnp.zeros((src.shape[0],) * 2, bool).at[row, column].max(mask)
    return mask[:, None] & mask[None] & ~positive[row][:, column]


def corrupt(
    key: PRNGKey,
    src: Int[Array, " b"],
    dst: Int[Array, " b"],
    num: int,
    *,
    source: NegativeSampler | None = None,
    target: NegativeSampler | None = None,
) -> Ends:
    """`num` negatives of each pair, in which one end is drawn again and the other stays.

    `source` draws sources, `target` targets; given both, a fair coin decides for each negative which end is
    replaced (Bordes et al., 2013, "Translating embeddings", §2: so with triples, whose relation stays).
    Returns `(src, dst)`, each `[b, num]`. True pairs may be among them: see `resample`.

    >>> src, dst = corrupt(jax.random.key(0), jnp.array([0, 1]), jnp.array([2, 3]), 4, target=uniform(9))
    >>> src.tolist(), dst.shape
    ([[0, 0, 0, 0], [1, 1, 1, 1]], (2, 4))
    """
    if num < 1 or (source is None and target is None):
        raise ValueError(
            f"corrupt needs a sampler, source or target or both, and num of at least 1, got {num}"
        )
    shape = src.shape[0], num
    src, dst = (jnp.broadcast_to(ends[:, None], shape) for ends in (src, dst))
    coin, one, other = jax.random.split(key, 3)
    if source is None or target is None:
        first = jnp.full(shape, target is None)
    else:
        first = jax.random.bernoulli(coin, 0.5, shape)
    src = src if source is None else jnp.where(first, source(one, shape), src)
    return src, dst if target is None else jnp.where(first, dst, target(other, shape))


def resample(
    key: PRNGKey,
    first: Any,
    propose: Callable[[PRNGKey], Any],
    wrong: Callable[[Any], Bool[Array, "..."]],
    *,
    tries: int = 8,
) -> tuple[Any, Bool[Array, "..."]]:
    """`(kept, mask)`: proposes again what is wrong, up to `tries` times; mask False where it still is.

    `first` and `propose(key)` are arrays, or tuples of them, of the shape of `wrong(first)`. The loop ends as
    soon as nothing is wrong. What is valid has the distribution of a proposal given that it is right.

    >>> resample(jax.random.key(0), jnp.arange(4), lambda key: jnp.arange(4) + 1, lambda ids: ids < 2)
    (Array([1, 2, 2, 3], dtype=int32), Array([False,  True,  True,  True], dtype=bool))
    """
    if tries < 0:
        raise ValueError(f"tries is how often a negative is drawn again, at least 0, got {tries}")

    def again(state):
        trial, kept, bad = state
        new = propose(jax.random.fold_in(key, trial))
        kept = jax.tree.map(lambda old, new: jnp.where(bad, new, old), kept, new)
        return trial + 1, kept, bad & wrong(kept)

    state = jnp.int32(0), first, wrong(first)
    _, kept, bad = jax.lax.while_loop(lambda state: (state[0] < tries) & state[2].any(), again, state)
    return kept, ~bad


def exclude_edges(
    key: PRNGKey,
    graph: Graph,
    src: Int[Array, " b"],
    negatives: Int[Array, "b num"],
    sampler: NegativeSampler,
    *,
    tries: int = 8,
) -> tuple[Int[Array, "b num"], Bool[Array, "b num"]]:
    """`(negatives, mask)` without true edges `src[i] -> negatives[i, j]`: drawn again up to `tries` times.

    What is an edge even then is masked: a valid negative never is one, and has the sampler's distribution
    over the nodes that `src[i]` has no edge to. The graph, with sorted rows (`sort_rows`), holds all edges to
    be excluded; after `add_self_loops` a node is no negative of its own. For the other end, and for typed
    edges, see `resample` and `corrupt`.

    >>> from jsage.graph import from_edges
    >>> from jsage.graph import sort_rows
    >>> graph = sort_rows(from_edges([0, 0, 1, 1, 1], [0, 1, 0, 1, 2], num_nodes=3))
    >>> exclude_edges(jax.random.key(0), graph, jnp.array([0, 1]), jnp.array([[1], [1]]), uniform(3))
    (Array([[2], [...]], dtype=int32), Array([[ True], [False]], dtype=bool))
    """
    rows = jnp.broadcast_to(src[:, None], negatives.shape)
    propose, wrong = lambda key: sampler(key, negatives.shape), lambda ids: has_edge(graph, rows, ids)
    return resample(key, negatives, propose, wrong, tries=tries)


def _slots(weights: Weights) -> tuple[np.ndarray, np.ndarray]:
    """`keep` and `alias` of the table that draws in proportion to weights."""
    share = _shares(weights)
    light, heavy = np.flatnonzero(share < ONE), np.flatnonzero(share > ONE)
    keep, alias = share.copy(), np.arange(len(share))
    # The heavy ids fill up the light slots, both in order; one that falls below 1 is filled by the next.
    lack, spare = np.cumsum(ONE - share[light]), np.cumsum(share[heavy] - ONE)
    alias[light] = heavy[np.searchsorted(spare, lack - (ONE - share[light]), "right")]
    keep[heavy] = ONE + spare - lack[np.searchsorted(lack, spare, "left")]
    alias[heavy[:-1]] = heavy[1:]
    full = keep == ONE
    alias[full] = np.flatnonzero(full)
    return np.minimum(keep, ONE - 1).astype(np.uint32), alias


def _shares(weights: Weights) -> np.ndarray:
    """Weights as whole numbers that sum to `n · 2^32`."""
    array = np.asarray(weights, np.float64)
    if array.ndim != 1 or not 0 < array.size < 2**31:
        raise ValueError(f"weights must be one list of at least one number, got shape {array.shape}")
    if not np.isfinite(array).all() or (array < 0).any() or not array.any():
        raise ValueError(
            f"weights must be finite, at least 0 and not all 0, got {array.min()} .. {array.max()}: where no "
            "node has an edge, draw with uniform"
        )
    array = array / array.max()
    share = np.rint(array / array.sum() * array.size * ONE).astype(np.int64)
    some = np.flatnonzero(share)
    error = array.size * ONE - int(share.sum())
    share[some] += error // len(some)
    share[some[: error % len(some)]] += 1
    return share
