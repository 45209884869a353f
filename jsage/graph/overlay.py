"""New nodes beside a graph, which is not rebuilt: their edges lie apart, sorted, for a binary search."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jsage._internal.arrays import pad_rows, round_up, take
from jsage._internal.checks import check_edge_rows, check_ids, check_pairs
from jsage.graph.adjacency import Adjacency, over_slots
from jsage.graph.as_of import GraphBefore, check_one_time
from jsage.graph.sparse import Features, check_rows, is_sparse, joined_rows
from jsage.typing import EdgeData, HostArray

NOWHERE = 2**31 - 1
"""The destination of edges that are padding: no node has this id."""


class NewNodes(NamedTuple):
    """Nodes to be embedded, `m` of them, beside a graph: new node `i` is `-1 - i` among the ends of edges.

    Edges go `src[e] -> dst[e]`, each end a known node or a new one. An edge into a known node is one more of
    its neighbors. Undirected edges are given in both directions.
    """

    features: Features
    src: Int[HostArray, " num_edges"] | Sequence[int]
    dst: Int[HostArray, " num_edges"] | Sequence[int]
    edge_data: dict[str, Any] = {}
    """One row an edge, under the names that the graph's have."""
    capacity: tuple[int, int] | None = None
    """Numbers of new nodes and of edges to compile for; None: the next powers of two."""


@runtime_checkable
class KnownNodes(Adjacency, Protocol):
    """A graph that says how many of the ids below `id_limit` are given."""

    @property
    def num_nodes(self) -> int | Int[Array, ""]:
        """The number of nodes: their ids are below it."""
        ...


class GraphOverlay(NamedTuple):
    """A graph with new nodes and their edges beside it: an `Adjacency`; nothing of the graph is copied.

    It reads as the graph that `from_edges` makes of all edges: a node's are those of the graph, then the new
    ones in the order they were given. New node `i` has the id `first_new + i`. `overlay` makes one.
    """

    graph: Adjacency
    first_new: Int[Array, ""]
    """The least id of a new node; the ids from here to the graph's `id_limit`, if any, are not read there."""
    features: Features
    src: Int[Array, " max_edges"]
    dst: Int[Array, " max_edges"]
    """Ascending; the padding, `NOWHERE`, comes last."""
    edge_data: EdgeData = {}

    @property
    def id_limit(self) -> int | Any:
        """Known and new nodes, with room for more new ones."""
        return self.graph.id_limit + self.features.shape[0]

    def degrees(self, nodes: Int[Array, "*rows"]) -> Int[Array, "*rows"]:
        """Edges of the graph and new ones."""
        return self._known(nodes)[1] + self._find(nodes, "right") - self._find(nodes, "left")

    def edges_at(
        self, nodes: Int[Array, "*rows"], offset: Int[Array, "..."], valid: Bool[Array, "..."]
    ) -> tuple[Int[Array, "..."], EdgeData]:
        """A node's edges in the graph, then the new ones."""
        ids, known = self._known(nodes)
        old = valid & (offset < over_slots(known, offset.ndim))
        at = over_slots(self._find(nodes, "left") - known, offset.ndim) + offset
        at = jnp.clip(at, 0, self.src.shape[0] - 1)
        src, data = self.graph.edges_at(ids, jnp.where(old, offset, 0), old)
        pick = lambda a, b: jnp.where(over_slots(old, a.ndim), a, take(b, at))  # noqa: E731
        return pick(src, self.src), {name: pick(data[name], rows) for name, rows in self.edge_data.items()}

    def rows(self, table: Features, ids: Int[Array, " num_ids"]) -> Any:
        """The features of nodes: known ones' from their table, new ones' from here."""
        beyond = ids >= self.first_new
        if is_sparse(table):
            at = jnp.where(beyond, ids - self.first_new + table.shape[0], ids)
            return joined_rows(table, self.features).rows(at)
        known = take(table, jnp.where(beyond, 0, ids))
        new = take(self.features, jnp.where(beyond, ids - self.first_new, 0))
        return jnp.where(beyond[:, None], new.astype(table.dtype), known)

    def _known(self, nodes: Array) -> tuple[Array, Array]:
        """The ids that the graph may be asked for, and the number of its edges into each node."""
        known = nodes < self.first_new
        ids = jnp.where(known, nodes, 0)
        return ids, jnp.where(known, self.graph.degrees(ids), 0)

    def _find(self, nodes: Array, side: str) -> Array:
        return jnp.searchsorted(self.dst, nodes, side=side, method="scan_unrolled").astype(jnp.int32)


def overlay(graph: KnownNodes, new: NewNodes) -> GraphOverlay:
    """Put new nodes beside a graph: checked, padded and sorted on the host, at a cost of the new edges alone.

    Their ids begin at the graph's `id_limit`. As of one time the graph's edges have times, and so have
    theirs: what it does not show then is left out. Raises ValueError for edges of nodes that are neither
    known nor new, ragged or missing arrays, features that are not finite, and more nodes or edges than
    `capacity`.

    >>> import jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> graph = from_edges(src=[1, 0], dst=[0, 1], num_nodes=2)
    >>> overlay(graph, NewNodes(np.ones((1, 4)), src=[0, -1], dst=[-1, 0])).degrees(jnp.arange(3))
    Array([2, 1, 1], dtype=int32)
    """
    features, src, dst = _checked(graph, new)
    data = {
        name: check_edge_rows(name, new.edge_data[name], len(src), like=values)
        for name, values in graph.edge_data.items()
    }
    if isinstance(graph, GraphBefore):
        src, dst, data = _shown(graph, src, dst, data)
    nodes, edges = new.capacity or (round_up(features.shape[0]), round_up(len(src)))
    if features.shape[0] > nodes or len(src) > edges:
        raise ValueError(
            f"capacity is {nodes} new nodes and {edges} edges, got {features.shape[0]} and {len(src)}: "
            "raise it, or leave it out"
        )
    if graph.id_limit + nodes > NOWHERE:
        raise ValueError(f"ids are int32, got {graph.id_limit} of the graph and {nodes} new ones")
    order = np.argsort(dst, kind="stable")
    pad = (0, max(edges, 1) - len(src))
    return GraphOverlay(
        graph,
        jnp.int32(graph.id_limit),
        _padded_rows(features, nodes),
        jnp.asarray(np.pad(src[order], pad)),
        jnp.asarray(np.pad(dst[order], pad, constant_values=NOWHERE)),
        {name: _padded(rows[order], pad) for name, rows in data.items()},
    )


def _shown(
    graph: GraphBefore, src: np.ndarray, dst: np.ndarray, data: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """The edges that are visible as of the graph's time, with their age."""
    check_one_time(graph, "a graph with new nodes")
    keep = graph.shows(data["time"])
    kept = {name: jnp.asarray(rows[keep]) for name, rows in data.items()}
    aged = graph.with_age(kept, jnp.reshape(jnp.asarray(graph.time), ()))
    return src[keep], dst[keep], {name: np.asarray(rows) for name, rows in aged.items()}


def _padded_rows(features: Any, nodes: int) -> Any:
    """Rows with empty ones after them; words with more, to a power of two, so that few sizes are compiled."""
    if not is_sparse(features):
        return jnp.asarray(pad_rows(features, nodes))
    words = round_up(len(features.values))
    pads = {"start": nodes, "length": nodes, "indices": words, "values": words}
    sizes = {name: pad_rows(np.asarray(getattr(features, name)), size) for name, size in pads.items()}
    return jax.tree.map(jnp.asarray, features._replace(**sizes))


def _checked(graph: KnownNodes, new: NewNodes) -> tuple[Any, np.ndarray, np.ndarray]:
    """Features and ends of edges, in which new node `i` is `id_limit + i`."""
    features = check_rows(new.features, name="new.features")
    features = features if is_sparse(features) else features.astype(np.float32)
    if not features.shape[0]:
        raise ValueError("no new nodes to embed: new.features has no rows")
    given, num_new = int(graph.num_nodes), features.shape[0]
    src = check_ids(new.src, given, "new.src", num_new=num_new)
    dst = check_ids(new.dst, given, "new.dst", num_new=num_new)
    check_pairs(src, dst, ("new.src", "new.dst"))
    if extra := set(new.edge_data) ^ set(graph.edge_data):
        raise ValueError(
            f"new.edge_data must have the names of the graph's, {sorted(graph.edge_data)}, "
            f"got {sorted(new.edge_data)}: {sorted(extra)} differ"
        )
    src, dst = (np.where(ids < 0, graph.id_limit - 1 - ids, ids) for ids in (src, dst))
    return features, src, dst


def _padded(rows: np.ndarray, pad: tuple[int, int]) -> Array:
    return jnp.asarray(np.pad(rows, [pad] + [(0, 0)] * (rows.ndim - 1)))
