"""Batches that are subgraphs: some nodes and the edges between them, in fixed shapes, inside the jitted step.

All layers of a model run on one block: `model.apply(params, features[batch.nodes], (batch.block,) * layers)`.
Loss and metrics count the valid rows alone. Clusters are made on the host by `jsage.graph.cluster`; other
subgraphs are what `induced_batch` makes of any nodes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jsage._internal.arrays import take
from jsage.blocks import Segments
from jsage.graph import Clusters
from jsage.graph.adjacency import Adjacency
from jsage.sampling.neighbors import sample_neighbors
from jsage.typing import EdgeData, PRNGKey


class Subgraph(NamedTuple):
    """Some nodes, each in one valid row, and the edges between them.

    >>> from jsage.graph import from_edges
    >>> graph = from_edges([0, 1, 2], [1, 2, 0], num_nodes=3)
    >>> batch = induced_batch(jax.random.key(0), graph, jnp.array([2, 1, 2]), width=4)
    >>> batch.nodes, batch.mask
    (Array([1, 2, 2], dtype=int32), Array([ True,  True, False], dtype=bool))
    """

    block: Segments
    """Sources and destinations are the rows; its degrees count the subgraph's edges alone."""
    nodes: Int[Array, " rows"]
    """Each row's node: the rows of tables to read. Padding holds ids of some nodes."""
    mask: Bool[Array, " rows"]


def cluster_batch(
    clusters: Clusters, chosen: Int[Array, " q"], mask: Bool[Array, " q"] | None = None
) -> Subgraph:
    """The subgraph of `q` clusters, edges between them kept (Chiang et al., 2019, section 3.2).

    `chosen` are distinct clusters, those with `mask` False are left out: `jsage.sampling.epoch(key,
    jnp.arange(clusters.num), q)` gives both for all steps of an epoch. Nothing can overflow: each cluster is
    a slice as long as the largest one. The work is in proportion to that, and not to the graph.

    >>> from jsage.graph import cluster, from_edges
    >>> graph = from_edges([0, 1, 2, 3, 1], [1, 0, 3, 2, 2], num_nodes=4)
    >>> clusters = cluster(graph, 2, partition=lambda graph, num: jnp.array([0, 0, 1, 1]))
    >>> batch = cluster_batch(clusters, jnp.array([1, 0]))
    >>> batch.nodes, batch.block.degrees()
    (Array([2, 3, 0, 1], dtype=int32), Array([2, 1, 1, 1], dtype=int32))
    """
    q, rows = chosen.shape[0], clusters.row.shape[0]
    mask = jnp.ones(q, bool) if mask is None else mask
    nodes, valid = _slices(clusters.order, clusters.node_ptr, chosen, rows)
    (src, dst, data), inside = _slices(
        (clusters.src, clusters.dst, dict(clusters.edge_data)),
        clusters.edge_ptr,
        chosen,
        clusters.slot.shape[0],
    )
    key = jnp.where(mask, chosen, clusters.num)
    rank = jnp.argsort(key)
    owner = src // rows
    at = jnp.minimum(jnp.searchsorted(key[rank], owner), q - 1)
    place = take(rank, at).astype(jnp.int32)
    inside &= mask[:, None] & (take(key[rank], at) == owner)
    own = jnp.arange(q, dtype=jnp.int32)[:, None] * rows + dst
    src = jnp.where(inside, place * rows + src % rows, own)
    block = _segments(src, own, inside, q * rows, data)
    return Subgraph(block, nodes.ravel(), (valid & mask[:, None]).ravel())


def induced_batch(key: PRNGKey, graph: Adjacency, nodes: Int[Array, " rows"], width: int) -> Subgraph:
    """The subgraph of any nodes: up to `width` edges into each are looked up, and kept between the nodes.

    A node with more edges than `width` draws so many, without replacement, before it is known where they come
    from: each is as likely as the others. Nodes may come several times; they have one valid row, and rows
    ascend by id.

    >>> from jsage.graph import from_edges
    >>> graph = from_edges([0, 1, 2, 3, 1], [1, 0, 3, 2, 2], num_nodes=4)
    >>> batch = induced_batch(jax.random.key(0), graph, jnp.array([2, 0, 1, 0]), width=4)
    >>> batch.nodes[batch.mask], batch.block.degrees()[batch.mask]
    (Array([0, 1, 2], dtype=int32), Array([1, 1, 1], dtype=int32))
    """
    nodes = jnp.sort(nodes)
    mask = jnp.diff(nodes, prepend=-1) > 0
    hop = sample_neighbors(key, graph, nodes, width)
    at = jnp.minimum(jnp.searchsorted(nodes, hop.src).astype(jnp.int32), nodes.shape[0] - 1)
    inside = hop.mask & mask[:, None] & (take(nodes, at) == hop.src)
    own = jnp.broadcast_to(jnp.arange(nodes.shape[0], dtype=jnp.int32)[:, None], at.shape)
    src = jnp.where(inside, at, own)
    return Subgraph(_segments(src, own, inside, nodes.shape[0], hop.edge_data), nodes, mask)


def symmetric_block(block: Segments) -> Segments:
    """`jsage.graph.symmetric_weights` of a batch, by the degrees in it, for `aggregate.gcn`; inside jit.

    Each weight, 1 where there are none, times `sqrt((1 + in_degree(dst)) / (1 + out_degree(src)))`.

    >>> from jsage.blocks import edge_list
    >>> block = edge_list(jnp.array([1, 2, 0, 0]), jnp.array([0, 0, 1, 2]), num_dst=3)
    >>> symmetric_block(block).edge_data["weight"].round(2)
    Array([1.22, 1.22, 0.82, 0.82], dtype=float32)
    """
    valid = block.dst < block.num_dst
    out = jax.ops.segment_sum(valid.astype(jnp.int32), block.src, block.num_dst)
    degree = take(block.degree, jnp.minimum(block.dst, block.num_dst - 1))
    return _weighted(block, jnp.sqrt((1 + degree) / (1 + take(out, block.src))))


def gcn_block(block: Segments) -> Segments:
    """`jsage.graph.gcn_weights` of a batch, by the degrees in it, for `GCNConv`; inside jit.

    As for the whole graph, with a self-loop of weight 1 a node and none among the edges
    (`jsage.graph.remove_self_loops`).

    >>> from jsage.blocks import edge_list
    >>> block = gcn_block(edge_list(jnp.array([1, 0]), jnp.array([0, 1]), num_dst=2))
    >>> block.edge_data["weight"], block.edge_data["own_weight"]
    (Array([0.5, 0.5], dtype=float32), Array([0.5, 0.5], dtype=float32))
    """
    at = jnp.minimum(block.dst, block.num_dst - 1)
    given = block.edge_data.get("weight", jnp.ones(at.shape, jnp.float32))
    total = 1 + jax.ops.segment_sum(given, block.dst, block.num_dst)
    scale = take(block.degree, at) * jax.lax.rsqrt(take(total, at) * take(total, block.src))
    block = _weighted(block, scale)
    return block._replace(edge_data={**block.edge_data, "own_weight": 1 / take(total, at)})


def _weighted(block: Segments, scale: Float[Array, " num_edges"]) -> Segments:
    weight = block.edge_data.get("weight", jnp.ones(scale.shape, scale.dtype)) * scale
    return block._replace(edge_data={**block.edge_data, "weight": weight})


def _segments(src: Array, own: Array, inside: Array, rows: int, data: EdgeData) -> Segments:
    """Slots of each destination's edges as an edge list; padding reads its own destination."""
    dst = jnp.where(inside, own, rows).ravel()
    degree = jax.ops.segment_sum(inside.ravel().astype(jnp.int32), dst, rows)
    flat = {name: x.reshape(dst.size, *x.shape[2:]) for name, x in data.items()}
    return Segments(src.ravel(), dst, degree, flat)


def _slices(arrays: Any, pointer: Array, chosen: Array, length: int) -> tuple[Any, Array]:
    """`length` rows of each array from each cluster's first on, and which of them are the cluster's own."""
    begin, end = take(pointer, chosen), take(pointer, chosen + 1)
    cut = jax.vmap(lambda array, at: jax.lax.dynamic_slice_in_dim(array, at, length), in_axes=(None, 0))
    own = jnp.arange(length, dtype=jnp.int32)[None] < (end - begin)[:, None]
    return jax.tree.map(lambda array: cut(array, begin), arrays), own
