"""Random walks on the device, inside jit: first-order, with restart, node2vec's, and the pairs they make.

A graph holds in-neighbors, so a step leads from a node to the source of an edge into it. `symmetrize` makes
a graph that is walked both ways, `reverse` one that is walked along its edges. The edges of a row are equally
likely, parallel ones apart: `edge_data` is not read, weights neither.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jsage._internal.arrays import take
from jsage.graph import Graph, has_edge
from jsage.graph.adjacency import Adjacency
from jsage.graph.search import edge_range
from jsage.sampling.draws import with_replacement
from jsage.sampling.neighbors import sample_neighbors
from jsage.typing import PRNGKey

Starts: TypeAlias = Int[Array, " rows"]


class Walks(NamedTuple):
    """One walk a row: `nodes[i, 0]` is its start, `nodes[i, t]` where it is after `t` steps.

    A walk that ended has mask False from then on, and repeats its last node.
    """

    nodes: Int[Array, "rows length+1"]
    mask: Bool[Array, "rows length+1"]


def random_walk(
    key: PRNGKey, graph: Adjacency, starts: Starts, length: int, *, restart: float = 0.0
) -> Walks:
    """Walks of `length` steps, each to a uniformly drawn in-neighbor of the node before.

    Without restart a walk ends at a node that has no neighbors. With it every step first decides: with
    probability `restart` it is the jump to the start, else a move to a neighbor, or the jump where there is
    none; only a start without neighbors ends its walk. So after `t` steps a walk is at a node drawn from

        x_t = r · e + (1 - r) · x_{t-1} P,    x_0 = e,

    where `r` is `restart`, `e` the start's unit row and `P` the steps of the walk, with `e` as the row of a
    node without neighbors. It tends to the start's personalized PageRank, `x = r · e + (1 - r) · x P` (Page
    et al., 1999; Haveliwala, 2002), by a factor of `1 - r` a step; and so do the shares of the visits.

    >>> from jsage.graph import from_edges
    >>> graph = from_edges(src=[1, 2], dst=[0, 1], num_nodes=3)  # 0 leads to 1, and 1 to 2
    >>> nodes, mask = random_walk(jax.random.key(0), graph, jnp.array([0, 1]), 3)
    >>> nodes
    Array([[0, 1, 2, 2],
           [1, 2, 2, 2]], dtype=int32)
    >>> mask.sum(1)
    Array([3, 2], dtype=int32)
    """
    if not 0 <= restart <= 1:
        raise ValueError(f"restart is the probability that a step goes back to the start, got {restart}")

    def step(key: PRNGKey, previous: Array, node: Array) -> tuple[Array, Array]:
        hop = sample_neighbors(key, graph, node, 1, draw=with_replacement)
        target, moved = hop.src[:, 0], hop.mask[:, 0]
        if restart == 0:
            return target, moved
        back = jax.random.bernoulli(jax.random.fold_in(key, 1), float(restart), node.shape, mode="high")
        return jnp.where(back | ~moved, starts, target), graph.degrees(starts) > 0

    return _walk(key, starts, length, step)


def node2vec_walk(key: PRNGKey, graph: Graph, starts: Starts, length: int, *, p: float, q: float) -> Walks:
    """Second-order walks, of which each step depends on the node before (Grover & Leskovec, 2016, §3.2).

    At `v`, reached from `t`, an edge to a neighbor `x` is drawn in proportion to

        1/p where x = t,    1 where x is a neighbor of t,    1/q elsewhere;

    the first step is uniform. A neighbor of `t` is where a step from `t` leads (the authors' code asks for
    the step from `x` to `t`: the same in a graph walked both ways). The graph is one of `sort_rows`.

    Exact by rejection (as KnightKing, Yang et al., 2019), without tables over pairs of edges. The edges back
    to `t` are an area of their own that is never rejected; the others are proposed uniformly, `max(q, 1/q)`
    times on average at most. The loop ends when all rows have moved, so it takes longest for `q` far from 1.

    >>> from jsage.graph import from_edges, symmetrize
    >>> path = symmetrize(from_edges([0, 1, 2], [1, 2, 3], num_nodes=4))
    >>> node2vec_walk(jax.random.key(0), path, jnp.array([0]), 4, p=1e6, q=1.0).nodes
    Array([[0, 1, 2, 3, 2]], dtype=int32)
    """
    for name, value in (("p", p), ("q", q)):
        if not 1e-6 <= value <= 1e6:
            raise ValueError(f"{name} must be in 1e-6 .. 1e6, got {value}: 1 has no effect on the walk")

    def step(key: PRNGKey, previous: Array, node: Array) -> tuple[Array, Array]:
        return _second_order(key, graph, previous, node, (p, q))

    return _walk(key, starts, length, step)


def positive_pairs(
    key: PRNGKey, graph: Adjacency, starts: Starts, *, walks: int = 50, length: int = 5
) -> tuple[Int[Array, "rows pairs"], Bool[Array, "rows pairs"]]:
    """`(partners, mask)`, `walks · length` a row: the nodes that each start's walks visit, other than itself.

    The positive pairs of unsupervised GraphSAGE (Hamilton et al., 2017, §3.2 and supplement: 50 walks of
    length 5 from each node). A node that is visited often comes as often. The authors' code pairs the start
    with the nodes from which its 5 steps set out, so the last one reached is left out: `length=4` here.

    >>> from jsage.graph import from_edges, symmetrize
    >>> graph = symmetrize(from_edges([0, 1], [1, 2], num_nodes=4))
    >>> partners, mask = positive_pairs(jax.random.key(0), graph, jnp.array([0, 3]), walks=2, length=3)
    >>> partners.shape, mask.any(1)
    ((2, 6), Array([ True, False], dtype=bool))
    """
    if walks < 1:
        raise ValueError(f"walks is the number of walks from each start, at least 1, got {walks}")
    nodes, mask = random_walk(key, graph, jnp.repeat(starts, walks), length)
    partners = nodes[:, 1:].reshape(starts.shape[0], walks * length)
    return partners, mask[:, 1:].reshape(partners.shape) & (partners != starts[:, None])


def _walk(
    key: PRNGKey, starts: Array, length: int, step: Callable[[PRNGKey, Array, Array], tuple[Array, Array]]
) -> Walks:
    """Walks of `step(key, previous, node) -> (target, moved)`; there is no previous node, -1, at first."""
    if length < 1:
        raise ValueError(f"length is the number of steps of a walk, at least 1, got {length}")

    def move(state, key):
        previous, node, valid = state
        target, moved = step(key, previous, node)
        valid &= moved
        node, previous = jnp.where(valid, target, node), node
        return (previous, node, valid), (node, valid)

    alive = jnp.ones(starts.shape, bool)
    state = jnp.full(starts.shape, -1, starts.dtype), starts, alive
    _, (nodes, mask) = jax.lax.scan(move, state, jax.random.split(key, length))
    return Walks(jnp.concatenate([starts[None], nodes]).T, jnp.concatenate([alive[None], mask]).T)


def _second_order(
    key: PRNGKey, graph: Graph, previous: Array, node: Array, pq: tuple[float, float]
) -> tuple[Array, Array]:
    """One step of node2vec: a dart at an area of `back / p` beside one of `others · max(1, 1/q)`."""
    degree = graph.degrees(node)
    if graph.num_edges == 0:
        return node, degree > 0
    p, q = pq
    high = max(1.0, 1 / q)
    at_first, row = previous < 0, take(graph.indptr, node)
    start, stop = edge_range(graph, previous, node)
    back = stop - start
    others = degree - back
    area = back.astype(jnp.float32), others.astype(jnp.float32) * (high * p)
    share = area[0] / jnp.maximum(area[0] + area[1], 1.0)  # below 1 only where back is 0

    def throw(state):
        trial, target, waiting = state
        pick, side, keep = jax.random.split(jax.random.fold_in(key, trial), 3)
        edge = row + with_replacement(pick, others, 1)[0][:, 0]
        edge += jnp.where(edge >= start, back, 0)  # the edges back to t lie in the middle of the row
        other = take(graph.indices, jnp.where(others > 0, edge, 0))
        near = at_first | has_edge(graph, other, jnp.where(at_first, 0, previous))
        returns = jax.random.bernoulli(side, share, mode="high")
        hit = returns | jax.random.bernoulli(keep, jnp.where(near, 1 / high, 1 / q / high), mode="high")
        found = jnp.where(returns, previous, other)
        return trial + 1, jnp.where(waiting & hit, found, target), waiting & ~hit

    state = jnp.int32(0), node, degree > 0
    return jax.lax.while_loop(lambda state: state[2].any(), throw, state)[1], degree > 0
