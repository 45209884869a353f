"""Draws by weight: exact without replacement, and by alias tables with replacement.

`sample_blocks(key, jsage.graph.cumulate(graph), seeds, fanouts, draw=Weighted())`: a draw of this file goes
wherever one of `jsage.sampling.draws` goes, and refuses a graph that has no tables for it.
"""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

from jsage._internal.arrays import below, start_of, take
from jsage._internal.checks import check_fanout
from jsage.graph import AliasGraph, GraphBefore, RowWeights, WeightedGraph
from jsage.graph.adjacency import Adjacency
from jsage.graph.weighted import UNWEIGHTED
from jsage.sampling.by_node import node_bits
from jsage.typing import PRNGKey

_Weighted: TypeAlias = WeightedGraph | GraphBefore
"""What has `row_weights`."""


class Weighted(NamedTuple):
    """A draw without replacement, each edge in proportion to its weight among those that are left.

    Successive sampling: the law of the `k` largest `u ** (1 / weight)` of a row, in their order (Efraimidis
    and Spirakis, 2006, "Weighted random sampling with a reservoir"), at a cost that does not grow with the
    row. Edges of weight 0 are never drawn, and a row with fewer others than `k` gives them all. A probability
    is right to within about 2^-30. A mean over the slots stands for a neighborhood that prefers heavy edges;
    an unbiased weighted mean is that of `WeightedWithReplacement`. With `by_node` a node's draw depends on
    the key and its id alone, as in `sample_blocks_by_node`.

    The graph is one of `jsage.graph.cumulate`, or a view as of a time of one, else TypeError.

    >>> import jax, jax.numpy as jnp
    >>> from jsage.graph import cumulate, from_edges
    >>> from jsage.sampling import sample_neighbors
    >>> graph = cumulate(from_edges([1, 2, 3], [0, 0, 0], num_nodes=4, weight=[0.0, 1.0, 9.0]))
    >>> block = sample_neighbors(jax.random.key(0), graph, jnp.array([0, 1]), 3, draw=Weighted())
    >>> block.src, block.mask.sum(1)
    (Array([[3, 2, 0],
           [1, 1, 1]], dtype=int32), Array([2, 0], dtype=int32))
    """

    by_node: bool = False

    def offsets(
        self, key: PRNGKey, graph: Adjacency, nodes: Int[Array, " rows"], k: int
    ) -> tuple[Int[Array, "rows k"], Bool[Array, "rows k"]]:
        """`(offset, mask)`: the edges drawn, by number, in the order in which they were."""
        check_fanout(k)
        if not isinstance(graph, _Weighted):
            raise TypeError(UNWEIGHTED.format(type(graph).__name__))
        return choose_weighted(_words(key, nodes, k, by_node=self.by_node), graph.row_weights(nodes))


class WeightedWithReplacement(NamedTuple):
    """Independent draws of a row's edges in proportion to their weights; a row without weight draws none.

    A mean over the slots is unbiased for `sum(weight * message) / sum(weight)` of the whole row, or of what
    is visible of it. By alias tables (Walker, 1977; Vose, 1991), two words and two reads a slot; or, as alias
    tables cannot be cut at a time, by the running sums of `cumulate`. With `by_node` a node's draw depends on
    the key and its id alone.

    The graph is one of `jsage.graph.alias_tables` or `cumulate`, or a view as of a time of the latter, else
    TypeError.

    >>> import jax, jax.numpy as jnp
    >>> from jsage.graph import alias_tables, from_edges
    >>> from jsage.sampling import sample_neighbors
    >>> graph = alias_tables(from_edges([1, 2, 3], [0, 0, 0], num_nodes=4, weight=[0.0, 0.0, 9.0]))
    >>> draw = WeightedWithReplacement()
    >>> sample_neighbors(jax.random.key(0), graph, jnp.array([0, 1]), 3, draw=draw).src
    Array([[3, 3, 3],
           [1, 1, 1]], dtype=int32)
    """

    by_node: bool = False

    def offsets(
        self, key: PRNGKey, graph: Adjacency, nodes: Int[Array, " rows"], k: int
    ) -> tuple[Int[Array, "rows k"], Bool[Array, "rows k"]]:
        """`(offset, mask)`: the edges drawn, by number."""
        check_fanout(k)
        if isinstance(graph, _Weighted):
            return _located(_words(key, nodes, k, by_node=self.by_node), graph.row_weights(nodes))
        if not isinstance(graph, AliasGraph):
            raise TypeError(
                f"edges are drawn with replacement from alias tables, which a {type(graph).__name__} does "
                "not have: pass jsage.graph.alias_tables(graph), made once on the host, or as of a time "
                "before(cumulate(graph), time)"
            )
        start, size = take(graph.graph.indptr, nodes), graph.degrees(nodes)
        if graph.keep.shape[0] == 0:
            return _nothing(size, k)
        words = _words(key, nodes, 2 * k, by_node=self.by_node).reshape(2, k, -1)

        def fill(words: Array) -> Array:
            slot = below(words[0], size)
            edge = jnp.where(size > 0, start + slot, 0)
            own = words[1] < take(graph.keep, edge)
            return jnp.where(own & (take(graph.alias, edge) >= 0), slot, take(graph.alias, edge))

        offset = jax.lax.map(fill, jnp.swapaxes(words, 0, 1)).T  # a slot at a time, as in `with_replacement`
        mask = (offset >= 0) & (size > 0)[:, None]
        return jnp.where(mask, offset, 0), mask


def choose_weighted(
    bits: UInt32[Array, "k rows"], weights: RowWeights
) -> tuple[Int[Array, "rows k"], Bool[Array, "rows k"]]:
    """The draw of `Weighted` that independent random words make: `bits[i]` fills slot `i`.

    Slot `i` draws a point of the line of a row's weights from which the edges drawn so far are cut out. Put
    back in, the last one first, each moves the points at or behind its place on by its weight; the edge that
    holds the point in the whole line is the one drawn, and its place in the cut line is kept.

    >>> import jax, jax.numpy as jnp
    >>> from jsage.graph import cumulate, from_edges
    >>> graph = cumulate(from_edges([1, 2, 3], [0, 0, 0], num_nodes=4, weight=[1.0, 1.0, 2.0]))
    >>> choose_weighted(jnp.zeros((2, 1), jnp.uint32), graph.row_weights(jnp.array([0])))[0]
    Array([[0, 1]], dtype=int32)
    """
    k, rows = bits.shape
    if weights.cumulative.shape[0] == 0:
        return _nothing(weights.stop, k)

    def fill(i, state):
        place, weight, chosen, left = state
        point = inside = below(bits[i], left)

        def put_back(j, point):  # slots that are still to be filled have weight 0
            return point + jnp.where(point >= place[k - 1 - j], weight[k - 1 - j], 0)

        point = jax.lax.fori_loop(0, k, put_back, point, unroll=min(k, 8))
        offset, low, width = weights.locate(point, left > 0)
        place = place.at[i].set(inside - (point - low))
        chosen = chosen.at[i].set(jnp.where(left > 0, offset, -1))
        return place, weight.at[i].set(width), chosen, left - width

    none = jnp.zeros((k, rows), jnp.int32)
    state = start_of((none, none, none, weights.total()), bits, weights)
    chosen = jax.lax.fori_loop(0, k, fill, state)[2]
    return jnp.maximum(chosen, 0).T, (chosen >= 0).T


def _located(
    bits: UInt32[Array, "k rows"], weights: RowWeights
) -> tuple[Int[Array, "rows k"], Bool[Array, "rows k"]]:
    """The edges that hold points of each row's line, which random words pick one apart from the other."""
    if weights.cumulative.shape[0] == 0:
        return _nothing(weights.stop, bits.shape[0])
    total = weights.total()
    offset = jax.lax.map(lambda word: weights.locate(below(word, total), total > 0)[0], bits)
    return offset.T, jnp.broadcast_to(total > 0, bits.shape).T


def _words(key: PRNGKey, nodes: Array, k: int, *, by_node: bool) -> UInt32[Array, "k rows"]:
    return node_bits(key, nodes, k) if by_node else jax.random.bits(key, (k, nodes.shape[0]), jnp.uint32)


def _nothing(size: Array, k: int) -> tuple[Array, Array]:
    """No slot of a graph without edges."""
    none = jnp.zeros((size.shape[0], k), jnp.int32)
    return none, none > 0
