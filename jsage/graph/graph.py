"""A graph as the in-neighbors of every node, in two int32 arrays; made on the host, in NumPy, once."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jsage._internal.arrays import run_positions, take
from jsage._internal.checks import (
    INT32,
    check_edge_rows,
    check_ids,
    check_labels,
    check_pairs,
)
from jsage.graph.adjacency import edges_of_rows
from jsage.graph.sparse import check_rows
from jsage.typing import EdgeData, HostArray


class Graph(NamedTuple):
    """The edges `u -> v` grouped by destination (CSC of `src -> dst`).

    `indices[indptr[v]:indptr[v + 1]]` are the sources of the edges into `v`, in the order they were given;
    row `e` of each array of `edge_data` belongs to edge `e` of `indices`. Make one with `from_edges`.
    Samplers read it by the calls of `Adjacency`.

    >>> graph = Graph(jnp.array([0, 2, 2]), jnp.array([1, 0]))
    >>> graph.num_nodes, graph.num_edges
    (2, 2)
    """

    indptr: Int[Array, " num_nodes+1"]
    indices: Int[Array, " num_edges"]
    edge_data: EdgeData = {}

    @property
    def num_nodes(self) -> int | Any:  # a symbol in exported programs
        """The number of nodes, isolated ones included."""
        return self.indptr.shape[0] - 1

    @property
    def num_edges(self) -> int:
        """The number of directed edges, parallel ones counted apart."""
        return self.indices.shape[0]

    @property
    def id_limit(self) -> int | Any:  # a symbol in exported programs
        """A bound on ids: the number of nodes."""
        return self.num_nodes

    def degrees(self, nodes: Int[Array, "*rows"]) -> Int[Array, "*rows"]:
        """The number of edges into each of `nodes`."""
        return take(self.indptr, nodes + 1) - take(self.indptr, nodes)

    def edges_at(
        self, nodes: Int[Array, "*rows"], offset: Int[Array, "..."], valid: Bool[Array, "..."]
    ) -> tuple[Int[Array, "..."], EdgeData]:
        """The source and the data of edge number `offset` of each node, as `Adjacency` says."""
        return edges_of_rows(take(self.indptr, nodes), offset, valid, self.indices, self.edge_data)


class SortedGraph(Graph):
    """A graph whose rows are known to ascend by source: what looks edges up needs one.

    `sort_rows` makes one of any graph; `symmetrize` and `reverse` give one. Other arrays for its edges make
    it a plain graph again.

    >>> graph = symmetrize(from_edges([0, 2], [1, 1], num_nodes=3))
    >>> type(graph).__name__, type(graph._replace(indices=graph.indices[::-1])).__name__
    ('SortedGraph', 'Graph')
    """

    __slots__ = ()

    def _replace(self, **fields: Any) -> Graph:  # type: ignore[override]
        new = super()._replace(**fields)
        return new if fields.keys() <= {"edge_data"} else Graph(*new)


class TimeSortedGraph(Graph):
    """A graph whose rows are known to ascend by `edge_data["time"]`: what reads it as of a time needs one.

    `sort_by_time` makes one. Other edges or times make it a plain graph again.

    >>> from jsage.graph import sort_by_time
    >>> graph = sort_by_time(from_edges([1, 2], [0, 0], num_nodes=3, time=[5, 3]))
    >>> type(graph).__name__, graph.indices.tolist()
    ('TimeSortedGraph', [2, 1])
    """

    __slots__ = ()

    def _replace(self, **fields: Any) -> Graph:  # type: ignore[override]
        new = super()._replace(**fields)
        kept = fields.keys() <= {"edge_data"} and new.edge_data.get("time") is self.edge_data["time"]
        return new if kept else Graph(*new)

    def runs(self, nodes: Int[Array, "*rows"]) -> tuple[Int[Array, "*rows"], Int[Array, "*rows"]]:
        """`(start, stop)`: where each node's edges are among all, a run in order of time."""
        return take(self.indptr, nodes), take(self.indptr, nodes + 1)


def from_edges(
    src: HostArray | Sequence[int],
    dst: HostArray | Sequence[int],
    num_nodes: int,
    **edge_data: HostArray | Sequence[int] | Sequence[float],
) -> Graph:
    """The graph of the edges `src[e] -> dst[e]`; parallel edges and self-loops are kept.

    `src, dst`: `[num_edges]` integers in `0 .. num_nodes - 1`. Each of `edge_data` has one row an edge
    (`"weight"`, `"time"`, `"type"`, ...) and is reordered as the edges are. An undirected graph is given in
    both directions, or made so by `symmetrize`. Raises ValueError for ragged arrays, ids that are no integers
    or out of range, data that are no finite numbers or that 32 bits do not hold, and 2^31 edges or more.

    >>> graph = from_edges([0, 1, 2, 0], [2, 0, 1, 1], num_nodes=3, weight=[0.1, 0.2, 0.3, 0.4])
    >>> graph.indptr.tolist(), graph.indices.tolist()
    ([0, 1, 3, 4], [1, 2, 0, 0])
    >>> graph.edge_data["weight"].tolist()
    [0.2..., 0.3..., 0.4..., 0.1...]
    """
    if not 0 <= num_nodes < INT32:
        raise ValueError(f"num_nodes must be in 0 .. 2^31 - 1 (ids are int32), got {num_nodes}")
    src, dst = check_ids(src, num_nodes, "src"), check_ids(dst, num_nodes, "dst")
    check_pairs(src, dst, ("src", "dst"))
    data = {name: check_edge_rows(name, values, len(src)) for name, values in edge_data.items()}
    return _group(src, dst, num_nodes, data)


def edges(graph: Graph) -> tuple[Int[Array, " num_edges"], Int[Array, " num_edges"]]:
    """The graph's edges as `(src, dst)`, in the order of `indices`: what `from_edges` takes.

    >>> src, dst = edges(from_edges([5, 3], [4, 0], num_nodes=6))
    >>> src.tolist(), dst.tolist()
    ([3, 5], [0, 4])
    """
    return jnp.asarray(graph.indices), jnp.asarray(_destinations(graph))


def in_degrees(graph: Graph) -> Int[Array, " num_nodes"]:
    """The number of edges into each node: `indptr[v + 1] - indptr[v]`. Also works inside jit.

    >>> in_degrees(from_edges([0, 1, 1], [1, 0, 1], num_nodes=3)).tolist()
    [1, 2, 0]
    """
    return jnp.diff(graph.indptr)


def out_degrees(graph: Graph) -> Int[Array, " num_nodes"]:
    """The number of edges out of each node.

    >>> out_degrees(from_edges([0, 1, 1], [1, 0, 1], num_nodes=3)).tolist()
    [1, 2, 0]
    """
    return jnp.asarray(np.bincount(graph.indices, minlength=graph.num_nodes).astype(np.int32))


def reverse(graph: Graph) -> SortedGraph:
    """Every edge `u -> v` turned into `v -> u`, its `edge_data` with it; sources ascend.

    >>> reverse(from_edges([0, 0], [1, 2], num_nodes=3)).indices.tolist()
    [1, 2]
    """
    ends = _destinations(graph), np.asarray(graph.indices)
    return SortedGraph(*_group(*ends, graph.num_nodes, _host(graph.edge_data)))


def symmetrize(graph: Graph) -> SortedGraph:
    """Every edge in both directions, each pair `(u, v)` once, sources ascending; a self-loop stays one edge.

    `edge_data` follows the edge kept: the graph's first `u -> v`, or the first `v -> u` where it has none.

    >>> graph = symmetrize(from_edges([0, 0, 2], [1, 1, 2], num_nodes=3, weight=[5.0, 6.0, 7.0]))
    >>> graph.indptr.tolist(), graph.indices.tolist(), graph.edge_data["weight"].tolist()
    ([0, 1, 2, 3], [1, 0, 2], [5.0, 5.0, 7.0])
    """
    n, src, dst = graph.num_nodes, np.asarray(graph.indices), _destinations(graph)
    pair = np.concatenate([dst, src]).astype(np.int64) * n
    pair += np.concatenate([src, dst])
    order = np.argsort(pair, kind="stable") if graph.edge_data else np.empty(0, np.int64)
    pair.sort()
    first = np.diff(pair, prepend=-1) > 0
    pair = pair[first]
    dst = pair // max(n, 1)
    src = (pair - dst * n).astype(np.int32)
    if graph.edge_data:
        order = order[first] % max(graph.num_edges, 1)
    data = {name: values[order] for name, values in _host(graph.edge_data).items()}
    return SortedGraph(*_graph(_running(np.bincount(dst, minlength=n)), src, data))


def add_self_loops(graph: Graph) -> Graph:
    """One edge `v -> v` for each node that has none, the last of its row.

    In `edge_data` a new edge has `"weight"` 1 and every other array 0.

    >>> add_self_loops(from_edges([0, 0], [0, 1], num_nodes=3)).indices.tolist()
    [0, 0, 1, 2]
    """
    src, dst = np.asarray(graph.indices), _destinations(graph)
    lacks = np.ones(graph.num_nodes, bool)
    lacks[src[src == dst]] = False
    new = np.flatnonzero(lacks).astype(np.int32)
    data = {
        name: np.concatenate([values, np.full((len(new), *values.shape[1:]), name == "weight", values.dtype)])
        for name, values in _host(graph.edge_data).items()
    }
    return _group(np.concatenate([src, new]), np.concatenate([dst, new]), graph.num_nodes, data)


def induced_subgraph(graph: Graph, nodes: HostArray | Sequence[int]) -> Graph:
    """The edges between `nodes` (distinct ids); node `i` of the result is `nodes[i]`. `edge_data` is kept.

    Raises ValueError for ids that are repeated, out of range or not integers.

    >>> graph = from_edges([0, 1, 2, 3], [1, 2, 3, 0], num_nodes=4)
    >>> subgraph = induced_subgraph(graph, [2, 1])
    >>> subgraph.indptr.tolist(), subgraph.indices.tolist()
    ([0, 1, 1], [1])
    """
    nodes = check_ids(nodes, graph.num_nodes, "nodes")
    position = np.full(graph.num_nodes, -1, np.int32)
    position[nodes] = np.arange(len(nodes), dtype=np.int32)
    if len(repeated := nodes[position[nodes] != np.arange(len(nodes))]):
        raise ValueError(f"nodes must be distinct, got {repeated[0]} more than once: pass np.unique(nodes)")
    indptr = np.asarray(graph.indptr, np.int64)
    count = indptr[nodes + 1] - indptr[nodes]
    slot = run_positions(indptr[nodes], count)
    src = position[np.asarray(graph.indices)[slot]]
    keep = src >= 0
    data = {name: values[slot[keep]] for name, values in _host(graph.edge_data).items()}
    return _graph(_running(keep)[_running(count)], src[keep], data)


def remove_self_loops(graph: Graph) -> Graph:
    """The graph without its edges `v -> v`.

    >>> remove_self_loops(from_edges([0, 1, 1], [0, 0, 1], num_nodes=2)).indices.tolist()
    [1]
    """
    return _kept(graph, np.asarray(graph.indices) != _destinations(graph))


def hide_nodes(graph: Graph, nodes: HostArray | Sequence[int]) -> Graph:
    """The graph without the edges that touch `nodes`: every node keeps its id, and the hidden stand alone.

    Raises ValueError for ids out of range.

    >>> graph = hide_nodes(from_edges([0, 1, 2], [1, 2, 0], num_nodes=3), [2])
    >>> graph.indptr.tolist(), graph.indices.tolist()
    ([0, 0, 1, 1], [0])
    """
    hidden = np.zeros(graph.num_nodes, bool)
    hidden[check_ids(nodes, graph.num_nodes, "nodes")] = True
    indices = np.asarray(graph.indices)
    return _kept(graph, ~(hidden[indices] | hidden[_destinations(graph)]))


def without_data(graph: Graph, name: str) -> Graph:
    """The graph without an array of `edge_data`, if it has one of that name.

    >>> without_data(from_edges([0], [1], num_nodes=2, weight=[1.0]), "weight").edge_data
    {}
    """
    return graph._replace(edge_data={key: rows for key, rows in graph.edge_data.items() if key != name})


def _kept(graph: Graph, keep: np.ndarray) -> Graph:
    data = {name: values[keep] for name, values in _host(graph.edge_data).items()}
    indptr = _running(keep)[np.asarray(graph.indptr)]
    return type(graph)(*_graph(indptr, np.asarray(graph.indices)[keep], data))


def validate(
    graph: Graph,
    features: Any = None,
    labels: HostArray | None = None,
    seeds: HostArray | None = None,
) -> None:
    """Check values on the host, where jitted code cannot: raises ValueError that says what is wrong.

    The graph: `indptr` int32, from 0 to `num_edges`, never falling; `indices` int32 in
    `0 .. num_nodes - 1`; `edge_data` finite, one row an edge, 32 bits a number at most. `features`:
    `[num_nodes, d]`, finite. `labels`: classes, 0/1 rows or real values. `seeds`: integers in
    `0 .. num_nodes - 1`.

    >>> graph = from_edges([0], [1], num_nodes=2)
    >>> validate(graph, features=np.zeros((2, 8)), seeds=np.array([1, 2]))
    Traceback (most recent call last):
    ValueError: seeds must be node ids in 0 .. 1, got 2
    """
    _check_structure(np.asarray(graph.indptr), np.asarray(graph.indices))
    _check_order(graph)
    for name, values in graph.edge_data.items():
        kept, given = check_edge_rows(name, values, graph.num_edges).dtype, np.asarray(values).dtype
        if kept != given:  # jax would round float64 and wrap integers
            raise ValueError(
                f"edge_data {name!r} must be {kept}, got {given}: use from_edges, or astype(np.{kept})"
            )
    if features is not None:
        check_rows(features, graph.num_nodes)
    if labels is not None:
        check_labels(labels, graph.num_nodes)
    if seeds is not None:
        check_ids(seeds, graph.num_nodes, "seeds")


def _check_structure(indptr: np.ndarray, indices: np.ndarray) -> None:
    for name, array in (("indptr", indptr), ("indices", indices)):
        if array.dtype != np.int32 or array.ndim != 1:
            raise ValueError(
                f"graph.{name} must be int32 of one axis, got {array.dtype} of shape {array.shape}"
            )
    if len(indptr) == 0 or indptr[0] != 0 or indptr[-1] != len(indices):
        ends = f"{indptr[0]} .. {indptr[-1]}" if len(indptr) else "nothing"
        raise ValueError(f"graph.indptr must go from 0 to the number of edges, {len(indices)}, got {ends}")
    if len(falls := np.flatnonzero(indptr[1:] < indptr[:-1])):
        raise ValueError(f"graph.indptr must never fall, but does after node {falls[0]}: use from_edges")
    check_ids(indices, len(indptr) - 1, "graph.indices")


def _check_order(graph: Graph) -> None:
    """A type that says how rows ascend says so truly."""
    keys = {SortedGraph: ("sources", graph.indices), TimeSortedGraph: ("times", graph.edge_data.get("time"))}
    name, key = keys.get(type(graph), ("", None))
    if key is None:
        return
    row, key = _destinations(graph), np.asarray(key)
    if len(falls := np.flatnonzero((key[1:] < key[:-1]) & (row[1:] == row[:-1]))):
        raise ValueError(
            f"the {name} of a {type(graph).__name__}'s row must ascend, but do not in row {row[falls[0]]}: "
            "make it by sort_rows or sort_by_time"
        )


def _group(src: np.ndarray, dst: np.ndarray, num_nodes: int, data: dict[str, np.ndarray]) -> Graph:
    """Group edges by destination, stably: sort `(dst, position)` packed in one int64."""
    order = dst.astype(np.int64)
    order <<= 32
    order |= np.arange(len(dst))
    order.sort()
    order &= 2**32 - 1
    data = {name: values[order] for name, values in data.items()}
    return _graph(_running(np.bincount(dst, minlength=num_nodes)), src[order], data)


def _graph(indptr: np.ndarray, indices: np.ndarray, data: dict[str, np.ndarray]) -> Graph:
    if len(indices) >= INT32:
        raise ValueError(f"the result has {len(indices)} edges, but a graph holds fewer than 2^31")
    arrays = {name: jax.device_put(values) for name, values in data.items()}  # jnp.asarray compiles a program
    return Graph(jax.device_put(indptr.astype(np.int32)), jax.device_put(indices), arrays)


def _running(counts: np.ndarray) -> np.ndarray:
    """0, then the running sums."""
    return np.concatenate([[0], np.cumsum(counts)])


def _destinations(graph: Graph) -> np.ndarray:
    return np.repeat(np.arange(graph.num_nodes, dtype=np.int32), np.diff(graph.indptr))


def _host(data: EdgeData) -> dict[str, np.ndarray]:
    return {name: np.asarray(values) for name, values in data.items()}
