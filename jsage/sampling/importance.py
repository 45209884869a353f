"""Neighborhoods by importance, and hard negatives: PinSage's random walks with restart (Ying et al., 2018).

A node's neighbors are those that walks from it visit most, and their share of the visits is their weight;
`jsage.nn.PinSAGEConv` reads both. Everything but `importance_graph` runs inside jit, and its shapes follow
from the number of seeds and the settings alone.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jsage.blocks import Indexed
from jsage.blocks.layout import Block
from jsage.graph import Graph
from jsage.graph.adjacency import Adjacency
from jsage.sampling.draws import without_replacement
from jsage.sampling.neighbors import stack_hops
from jsage.sampling.walks import random_walk
from jsage.typing import PRNGKey

Seeds: TypeAlias = Int[Array, " rows"]
Visited: TypeAlias = tuple[Int[Array, "rows visits"], Bool[Array, "rows visits"]]
VisitFn: TypeAlias = Callable[[PRNGKey, Adjacency, Seeds], Visited]
"""`(key, graph, starts) -> (nodes, mask)`: what walks from each start visit, in any order."""
KeepFn: TypeAlias = Callable[[Int[Array, "rows visits"]], Bool[Array, "rows visits"]]
"""`nodes -> kept`: which nodes may be neighbors."""

_NONE = np.iinfo(np.int32).max


class Ranking(NamedTuple):
    """The nodes that each row visited most, most visits first, ties by the lower id; slot 0 is rank 0.

    Padded slots have mask False, node 0 and 0 visits.
    """

    node: Int[Array, "rows top"]
    visits: Int[Array, "rows top"]
    mask: Bool[Array, "rows top"]


def restart_visits(
    key: PRNGKey, graph: Adjacency, starts: Seeds, *, walks: int = 10, length: int = 20, restart: float = 0.5
) -> Visited:
    """`(nodes, mask)` of all visits of `walks` walks of `length` steps with restart from each start.

    The chain of `jsage.sampling.random_walk`; where the walks began is no visit, coming back there is one.
    The shares of the visits are the personalized PageRank of the start, to within `1 / (restart * length)` of
    the walks' beginning and the noise of sampling, which falls as `1 / sqrt(walks * length)`.

    >>> import jax, jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> graph = from_edges([1, 0], [0, 1], num_nodes=3)
    >>> nodes, mask = restart_visits(jax.random.key(0), graph, jnp.array([0, 2]), walks=5, length=4)
    >>> nodes.shape, mask.sum(1)
    ((2, 20), Array([20,  0], dtype=int32))
    """
    if walks < 1:
        raise ValueError(f"walks is the number of walks from each start, at least 1, got {walks}")
    nodes, mask = random_walk(key, graph, jnp.repeat(starts, walks), length, restart=restart)
    shape = starts.shape[0], walks * length
    return nodes[:, 1:].reshape(shape), mask[:, 1:].reshape(shape)


def count_visits(nodes: Int[Array, "rows visits"], mask: Bool[Array, "rows visits"], top: int) -> Ranking:
    """The `top` nodes of each row with the most valid visits, by sorting the row and measuring its runs.

    >>> import jax.numpy as jnp
    >>> ranking = count_visits(jnp.array([[7, 3, 7, 5, 3, 7]]), jnp.array([[True] * 5 + [False]]), 4)
    >>> ranking.node, ranking.visits
    (Array([[3, 7, 5, 0]], dtype=int32), Array([[2, 2, 1, 0]], dtype=int32))
    """
    if top < 1:
        raise ValueError(f"top is a number of neighbors, at least 1, got {top}")
    rows, size = nodes.shape
    ids = jnp.sort(jnp.where(mask, nodes, _NONE), axis=1)
    first = jnp.concatenate([jnp.ones((rows, 1), bool), ids[:, 1:] != ids[:, :-1]], 1)
    place = jax.lax.broadcasted_iota(jnp.int32, ids.shape, 1)
    begins = jnp.where(first, place, size)
    later = jax.lax.cummin(begins, axis=1, reverse=True)  # where the next run begins, here or further on
    end = jnp.concatenate([later[:, 1:], jnp.full((rows, 1), size, jnp.int32)], 1)
    count, at = jax.lax.top_k(jnp.where(first & (ids != _NONE), end - place, 0), min(top, size))
    valid = count > 0
    node = jnp.where(valid, jnp.take_along_axis(ids, at, 1), 0)
    pad = (0, 0), (0, max(top - size, 0))
    return Ranking(*(jnp.pad(array, pad) for array in (node, count, valid)))


def rank_neighbors(
    key: PRNGKey,
    graph: Adjacency,
    seeds: Seeds,
    top: int,
    *,
    visit: VisitFn = restart_visits,
    keep: KeepFn | None = None,
) -> Ranking:
    """The `top` nodes that walks from each seed visit most, itself left out, with their counts.

    `visit` is `restart_visits` (`partial` sets the walks), or another function of its kind, such as
    `positive_pairs`. In a graph of users and items, `keep=lambda nodes: nodes >= num_users` counts
    items alone. Ranks are those of personalized PageRank with respect to the seed, as far as the visits tell.

    >>> import jax, jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> graph = from_edges([1, 2], [0, 1], num_nodes=3)
    >>> rank_neighbors(jax.random.key(0), graph, jnp.array([0, 2]), 3).node
    Array([[1, 2, 0],
           [0, 0, 0]], dtype=int32)
    """
    nodes, mask = visit(key, graph, seeds)
    mask = mask & (nodes != seeds[:, None])
    return count_visits(nodes, mask if keep is None else mask & keep(nodes), top)


def importance_neighbors(
    key: PRNGKey,
    graph: Adjacency,
    seeds: Seeds,
    top: int,
    *,
    visit: VisitFn = restart_visits,
    keep: KeepFn | None = None,
) -> Indexed:
    """The nodes of `rank_neighbors` as a block over node ids, `weight` their share of the counts kept.

    Importance-based neighborhoods (Ying et al., 2018, section 3.2). A slot that is not filled is padding.

    >>> import jax, jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> graph = from_edges([1, 2], [0, 1], num_nodes=3)
    >>> block = importance_neighbors(jax.random.key(0), graph, jnp.array([0, 2]), 3)
    >>> block.src
    Array([[1, 2, 0],
           [2, 2, 2]], dtype=int32)
    >>> block.edge_data["weight"].sum(1)
    Array([1., 0.], dtype=float32)
    """
    found = rank_neighbors(key, graph, seeds, top, visit=visit, keep=keep)
    total = jnp.maximum(found.visits.sum(1, keepdims=True), 1)
    src = jnp.where(found.mask, found.node, seeds[:, None])
    return Indexed(seeds, src, found.mask, {"weight": found.visits / total})


def importance_blocks(
    key: PRNGKey,
    graph: Adjacency,
    seeds: Seeds,
    tops: Sequence[int],
    *,
    visit: VisitFn = restart_visits,
    keep: KeepFn | None = None,
) -> tuple[Block, ...]:
    """The blocks of a minibatch over `importance_neighbors`, one a hop, in the order layers run.

    As `sample_blocks`: `tops[0]` is the hop next to the seeds.

    >>> import jax, jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> graph = from_edges([1, 2], [0, 1], num_nodes=3)
    >>> blocks = jax.jit(importance_blocks, static_argnums=3)
    >>> first, last = blocks(jax.random.key(0), graph, jnp.array([0, 2]), (2, 3))
    >>> first.dst, last.mask.shape
    (Array([0, 2, 1, 2, 2, 2], dtype=int32), (2, 2))
    """

    def hop(key: PRNGKey, frontier: Seeds, top: int) -> Indexed:
        return importance_neighbors(key, graph, frontier, top, visit=visit, keep=keep)

    return stack_hops(key, seeds, tops, hop)


def importance_graph(
    key: PRNGKey,
    graph: Graph,
    top: int,
    *,
    visit: VisitFn = restart_visits,
    keep: KeepFn | None = None,
    chunk: int = 4096,
) -> Graph:
    """Every node's `importance_neighbors` as a graph, `edge_data["weight"]` their weights, the highest first.

    Ahead of time: `sample_blocks` and everything else then work on it. Jits its own step, and so is called
    outside jit. Chunk `c` of `chunk` nodes draws with `fold_in(key, c)`; one at a time is on the device.

    >>> import jax
    >>> from jsage.graph import from_edges
    >>> found = importance_graph(jax.random.key(0), from_edges([1, 2], [0, 1], num_nodes=3), top=2)
    >>> found.indptr.tolist(), found.indices.tolist()
    ([0, 2, 3, 3], [1, 2, 2])
    """
    if chunk < 1:
        raise ValueError(f"chunk is a number of nodes, at least 1, got {chunk}")
    num_nodes, chunk = graph.num_nodes, min(chunk, max(graph.num_nodes, 1))
    graph = jax.device_put(graph._replace(edge_data={}))

    @jax.jit
    def step(graph: Graph, number: Array) -> Indexed:
        nodes = jnp.minimum(number * chunk + jnp.arange(chunk, dtype=jnp.int32), num_nodes - 1)
        return importance_neighbors(
            jax.random.fold_in(key, number), graph, nodes, top, visit=visit, keep=keep
        )

    degree, src, weight = [np.zeros(1, np.int64)], [np.zeros(0, np.int32)], [np.zeros(0, np.float32)]
    for first in range(0, num_nodes, chunk):
        block = step(graph, np.int32(first // chunk))
        mask = np.asarray(block.mask)[: num_nodes - first]
        degree.append(mask.sum(1))
        src.append(np.asarray(block.src)[: len(mask)][mask])
        weight.append(np.asarray(block.edge_data["weight"])[: len(mask)][mask])
    indptr = np.cumsum(np.concatenate(degree))
    if indptr[-1] >= 2**31:
        raise ValueError(f"{indptr[-1]} edges, but a graph holds fewer than 2^31: lower top")
    rows = jnp.asarray(np.concatenate(weight))
    return Graph(jnp.asarray(indptr.astype(np.int32)), jnp.asarray(np.concatenate(src)), {"weight": rows})


def hard_negatives(
    key: PRNGKey,
    ranking: Ranking,
    positives: Int[Array, "rows m"] | None,
    count: int,
    *,
    ranks: tuple[int, int] = (2000, 5000),
) -> tuple[Int[Array, "rows count"], Bool[Array, "rows count"]]:
    """`(nodes, mask)`: up to `count` distinct nodes of `ranks[0] <= rank < ranks[1]` a row, and no positives.

    Hard negatives are related to the query, but less than what it is paired with (Ying et al., 2018, section
    3.3: ranks 2000 to 5000 by personalized PageRank). `ranking` comes from `rank_neighbors` with
    `top >= ranks[1]`. Positives keep their ranks and are passed over; -1 lists none. Pass None where the
    ranking's mask is False at them already, for instance `mask & ~has_edge(graph, node, seeds)`. Every
    candidate is equally likely; a row with fewer has them all, and its padded slots hold node 0.

    >>> import jax, jax.numpy as jnp
    >>> ranking = Ranking(jnp.array([[8, 3, 5, 9]]), jnp.array([[4, 3, 2, 1]]), jnp.ones((1, 4), bool))
    >>> hard_negatives(jax.random.key(0), ranking, jnp.array([[5, -1]]), 3, ranks=(1, 4))
    (Array([[3, 9, 0]], dtype=int32), Array([[ True,  True, False]], dtype=bool))
    """
    low, high = ranks
    if not 0 <= low < high <= ranking.node.shape[1]:
        raise ValueError(
            f"ranks must be (low, high) with 0 <= low < high <= {ranking.node.shape[1]}, the ranks that the "
            f"ranking holds, got {ranks}: rank more nodes, or lower them"
        )
    if count < 1:
        raise ValueError(f"count is the number of hard negatives of a row, at least 1, got {count}")
    node, valid = ranking.node[:, low:high], ranking.mask[:, low:high]
    if positives is not None and positives.shape[1] > 0:
        valid = jax.lax.fori_loop(
            0, positives.shape[1], lambda i, valid: valid & (node != positives[:, i, None]), valid
        )
    order = jnp.argsort(~valid, axis=1, stable=True)  # candidates first, by rank
    offset, mask = without_replacement(key, valid.sum(1, dtype=jnp.int32), count)
    drawn = jnp.take_along_axis(node, jnp.take_along_axis(order, offset, 1), 1)
    return jnp.where(mask, drawn, 0), mask


def curriculum(epoch: int | Int[Array, ""], count: int) -> Bool[Array, " count"]:
    """Which of `count` hard negatives are valid in an epoch, the first of which is 1: `epoch - 1` of them.

    Training begins without hard negatives, and each epoch adds one (Ying et al., 2018, section 3.3). `epoch`
    may be traced: `mask & curriculum(epoch, count)[None]` changes no shape.

    >>> curriculum(3, 4)
    Array([ True,  True, False, False], dtype=bool)
    """
    return jnp.arange(count, dtype=jnp.int32) < epoch - 1
