"""Embeddings of nodes that are in no table, from their features and their edges to known or other new nodes.

The graph is not rebuilt: new edges lie beside it, sorted, and each node's are found by binary search. The
cost depends on the new nodes' neighbourhoods, not on the size of the graph.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from jsage.blocks import Block, Indexed, as_tree
from jsage.graph import AnyGraph
from jsage.graph.adjacency import degrees, read
from jsage.sampling import Room, fit_rooms, reads_rows, sample_blocks_by_node, whole_blocks
from jsage.sampling.exact import rounded, table_rows
from jsage.typing import EdgeData, HostArray

BATCH = 512
"""New nodes that are embedded at once."""
NOWHERE = 2**31 - 1
"""The destination of edges that are padding."""
Blocks: TypeAlias = tuple[Block, ...]


class NewNodes(NamedTuple):
    """Nodes to be embedded, `m` of them, beside a graph of `n`: their ids are `n .. n + m - 1`.

    Edges go `src[e] -> dst[e]`, each end a known node or a new one. An edge into a known node is one more of
    its neighbours. Undirected edges are given in both directions.
    """

    features: Float[HostArray, "num_new d"]
    src: Int[HostArray, " num_edges"] | Sequence[int]
    dst: Int[HostArray, " num_edges"] | Sequence[int]
    edge_data: dict[str, Any] = {}
    """One row an edge, under the names that the graph's have."""
    capacity: tuple[int, int] | None = None
    """Numbers of new nodes and of edges to compile for; None: the next powers of two."""


class Joined(NamedTuple):
    """A graph with new nodes beside it; reads as the graph that `from_edges` makes of all the edges.

    `dst` ascends; the padding is `NOWHERE`.
    """

    graph: AnyGraph
    features: Float[Array, "max_new d"]
    src: Int[Array, " max_edges"]
    dst: Int[Array, " max_edges"]
    edge_data: EdgeData

    @property
    def num_nodes(self) -> int:
        """Known and new nodes, with room for more new ones."""
        return self.graph.num_nodes + self.features.shape[0]

    def degrees(self, nodes: Int[Array, "*rows"]) -> Int[Array, "*rows"]:
        """Edges of the graph and new ones."""
        first, last = (self._find(nodes, side) for side in ("left", "right"))
        return self._known(nodes) + last - first

    def read(
        self, nodes: Int[Array, "*#rows"], offset: Int[Array, "*rows"], live: Bool[Array, "*rows"]
    ) -> tuple[Int[Array, "*rows"], EdgeData]:
        """A node's edges in the graph, then the new ones in the order they were given."""
        known = self._known(nodes)
        old = live & (offset < known)
        beside = jnp.clip(self._find(nodes, "left") + offset - known, 0, self.src.shape[0] - 1)
        src, data = self.src[beside], {name: rows[beside] for name, rows in self.edge_data.items()}
        if self.graph.num_nodes == 0:
            return src, data
        inside = jnp.where(nodes < self.graph.num_nodes, nodes, 0)
        here, there = read(self.graph, inside, jnp.where(old, offset, 0), old)
        pick = lambda a, b: jnp.where(old.reshape(old.shape + (1,) * (a.ndim - old.ndim)), a, b)  # noqa: E731
        return pick(here, src), {name: pick(there[name], rows) for name, rows in data.items()}

    def _known(self, nodes: Array) -> Array:
        inside = nodes < self.graph.num_nodes
        if self.graph.num_nodes == 0:
            return jnp.zeros_like(nodes)
        return jnp.where(inside, degrees(self.graph, jnp.where(inside, nodes, 0)), 0)

    def _find(self, nodes: Array, side: str) -> Array:
        return jnp.searchsorted(self.dst, nodes, side=side, method="scan_unrolled").astype(jnp.int32)


def join(graph: AnyGraph, new: NewNodes) -> Joined:
    """Put new nodes beside a graph: checked, padded and sorted on the host, at a cost of the new edges alone.

    Raises ValueError for ids beyond `n + m - 1`, ragged or missing arrays, features that are not finite, and
    more nodes or edges than `capacity`.

    >>> import jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> graph = from_edges(src=[1, 0], dst=[0, 1], num_nodes=2)
    >>> joined = join(graph, NewNodes(np.ones((1, 4)), src=[0, 2], dst=[2, 0]))
    >>> joined.degrees(jnp.arange(3))
    Array([2, 1, 1], dtype=int32)
    """
    features, src, dst = _checked(graph, new)
    nodes, edges = new.capacity or (rounded(len(features)), rounded(len(src)))
    if len(features) > nodes or len(src) > edges:
        raise ValueError(
            f"capacity is {nodes} new nodes and {edges} edges, got {len(features)} and {len(src)}: raise it, "
            "or leave it out"
        )
    order = np.argsort(dst, kind="stable")
    pad = (0, max(edges, 1) - len(src))
    return Joined(
        graph,
        jnp.asarray(np.pad(features, ((0, nodes - len(features)), (0, 0)))),
        jnp.asarray(np.pad(src[order], pad)),
        jnp.asarray(np.pad(dst[order], pad, constant_values=NOWHERE)),
        {name: _padded(name, values, new, order, pad) for name, values in graph.edge_data.items()},
    )


def embed_new(
    model: Any,
    params: PyTree,
    graph: AnyGraph,
    features: Float[Array, "num_nodes d"],
    new: NewNodes,
    fanouts: Sequence[int] | None = None,
) -> Float[np.ndarray, "num_new out"]:
    """The model's outputs for nodes that are in no table: what it gives on the graph rebuilt with them.

    Neighbourhoods are read whole, those of known neighbours with their new edges too; or sampled where
    `fanouts` are given, by the draws of `sample_blocks_by_node` under key 0, so that a node's result depends
    on its neighbourhood alone. Neither rebuilds nor copies the graph or its features.

    A host function that compiles for powers of two, and reuses what it compiled: a service sets
    `new.capacity`, and a model of two layers then has one program. An LSTM reads ordered slots: give it
    fanouts no smaller than any degree. Raises ValueError as `join` does.

    >>> import jax
    >>> from jsage import GraphSAGE, sample_blocks
    >>> from jsage.data import digits
    >>> graph, features, *_ = digits()
    >>> model, key = GraphSAGE(hidden=8, out=10), jax.random.key(0)
    >>> params = model.init(key, features, sample_blocks(key, graph, jnp.array([0]), (2, 2)))
    >>> new = NewNodes(features[:2] / 2, src=[5, 6, 1797], dst=[1797, 1797, 1798])
    >>> embed_new(model, params, graph, features, new).shape
    (2, 10)
    """
    _check_model(model, features, new)
    joined, count = join(graph, new), len(new.features)
    capacity = joined.features.shape[0]
    size = min(capacity, BATCH)
    rows = []
    for first in range(0, count, size):
        seeds = graph.num_nodes + np.minimum(np.arange(first, first + size), capacity - 1).astype(np.int32)
        if fanouts is None:
            sizes = _rooms(model, joined, features, new, seeds)
            out = _whole(model, sizes, params, joined, features, seeds)
        else:
            out = _sampled(model, tuple(fanouts), params, joined, features, seeds)
        rows.append(np.asarray(out))
    return np.concatenate(rows)[:count]


def apply_blocks(
    model: Any, params: PyTree, features: Float[Array, "num_nodes d"], joined: Joined, blocks: Blocks
) -> Float[Array, "num_seeds out"]:
    """`model.apply` on blocks of a joined graph, whose ids go beyond the feature table; for jit and export.

    >>> import jax
    >>> from jsage import GraphSAGE
    >>> from jsage.data import digits
    >>> graph, features, *_ = digits()
    >>> joined = join(graph, NewNodes(features[:1], src=[5], dst=[1797]))
    >>> blocks = sample_blocks_by_node(jax.random.key(0), joined, jnp.array([1797]), fanouts=(3,))
    >>> model = GraphSAGE(hidden=8, out=4, num_layers=1)
    >>> params = model.init(jax.random.key(0), features, blocks)
    >>> apply_blocks(model, params, features, joined, blocks).shape
    (1, 4)
    """
    first, *rest = blocks
    if not isinstance(first, Indexed):
        return model.apply(params, features, blocks)
    ids, tree = as_tree(first)
    return model.apply(params, table_rows(features, joined.features, ids), (tree, *rest))


@partial(jax.jit, static_argnums=(0, 1))
def _sampled(model, fanouts, params, joined, features, seeds):
    blocks = sample_blocks_by_node(jax.random.key(0), joined, seeds, fanouts)
    return apply_blocks(model, params, features, joined, blocks)


@partial(jax.jit, static_argnums=(0, 1))
def _whole(model, sizes, params, joined, features, seeds):
    rooms, last = sizes
    blocks, _ = whole_blocks(joined, seeds, rooms, more=joined.features, last=last)
    return apply_blocks(model, params, features, joined, blocks)


def _rooms(model: Any, joined: Joined, features: Array, new: NewNodes, seeds: np.ndarray):
    """The rooms of a batch, the last hop's included; the first hop holds new edges alone, counted here."""
    layers, dst = model.num_layers, np.asarray(joined.dst)
    if layers == 1:
        rooms, last = (), joined.src.shape[0]
    else:
        if new.capacity:
            room = Room(dst.size, seeds.size + dst.size)
        else:
            near = np.asarray(joined.src)[slice(*np.searchsorted(dst, (seeds[0], seeds[-1] + 1)))]
            room = Room(rounded(near.size), rounded(np.unique(np.concatenate([seeds, near])).size))
        rooms, last = (room,), None
        if layers > 2:
            rooms, last = fit_rooms(joined, jnp.asarray(seeds), layers, rooms)
    if not reads_rows(model, *features.shape, seeds.size, rooms):
        return rooms, None
    return rooms, last or fit_rooms(joined, jnp.asarray(seeds), layers, rooms)[1]


def _check_model(model: Any, features: Array, new: NewNodes) -> None:
    if getattr(model, "identity", None):
        raise ValueError(
            "this model has identity=..., an embedding learned for each known node: new nodes have none; "
            "train one on features alone"
        )
    if np.ndim(new.features) != 2 or new.features.shape[1] != features.shape[1]:
        raise ValueError(
            f"new.features must be [num_new, {features.shape[1]}] as the table is, "
            f"got {np.shape(new.features)}"
        )


def _checked(graph: AnyGraph, new: NewNodes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    features = np.asarray(new.features, np.float32)
    if not len(features):
        raise ValueError("no new nodes to embed: new.features has no rows")
    if not np.isfinite(features).all():
        row = np.argwhere(~np.isfinite(features))[0, 0]
        raise ValueError(f"new.features must be finite, got NaN or infinity in row {row}: fill or drop it")
    ends = []
    for name in ("src", "dst"):
        ids = np.asarray(getattr(new, name))
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise ValueError(f"new.{name} must be one axis of integers, got {ids.dtype} of shape {ids.shape}")
        limit = graph.num_nodes + len(features)
        if len(bad := ids[(ids < 0) | (ids >= limit)]):
            raise ValueError(
                f"new.{name} must be ids in 0 .. {limit - 1} ({graph.num_nodes} known nodes, then "
                f"{len(features)} new ones), got {bad[0]}"
            )
        ends.append(ids.astype(np.int32))
    if len(ends[0]) != len(ends[1]):
        raise ValueError(f"new.src and new.dst must be as long, got {len(ends[0])} and {len(ends[1])}")
    if extra := set(new.edge_data) ^ set(graph.edge_data):
        raise ValueError(
            f"new.edge_data must have the names of the graph's, {sorted(graph.edge_data)}, "
            f"got {sorted(new.edge_data)}: {sorted(extra)} differ"
        )
    return features, ends[0], ends[1]


def _padded(name: str, values: Array, new: NewNodes, order: np.ndarray, pad: tuple[int, int]) -> Array:
    rows = np.asarray(new.edge_data[name], values.dtype)
    if rows.shape != (len(order), *values.shape[1:]):
        shape = (len(order), *values.shape[1:])
        raise ValueError(f"new.edge_data {name!r} must be {list(shape)}, one row an edge, got {rows.shape}")
    return jnp.asarray(np.pad(rows[order], [pad] + [(0, 0)] * (rows.ndim - 1)))
