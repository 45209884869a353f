"""A graph that grows: nodes and edges are added and removed, and nothing recompiles within its capacity.

Each node's edges lie in a run of slots with room to spare; a run that is full moves to a place twice as
large. The arrays double when they are full. Both make the cost of an edge constant, on average over many.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jsage._internal.arrays import run_positions, take
from jsage._internal.checks import check_edge_rows, check_features, check_ids, check_pairs
from jsage._internal.device_mirror import DeviceMirror, pad_rows
from jsage.graph.adjacency import edges_of_rows
from jsage.graph.graph import Graph, TimeSortedGraph, from_edges, validate
from jsage.typing import EdgeData, HostArray, HostTable

Ids: TypeAlias = HostArray | Sequence[int] | Sequence[float]
"""Whole numbers, one an edge; anything else is refused with a message."""


class Grown(NamedTuple):
    """A growing graph as it is now, on the device: an `Adjacency`, which samplers and `embed_new` read.

    Its shapes are the capacities; ids that no node has yet have no edges.
    """

    num_nodes: Int[Array, ""]
    """Ids given so far: those of removed nodes too."""

    start: Int[Array, " capacity"]
    degree: Int[Array, " capacity"]
    indices: Int[Array, " slots"]
    edge_data: EdgeData

    @property
    def id_limit(self) -> int | Any:
        """The capacity: one more than the largest id there can be."""
        return self.start.shape[0]

    def degrees(self, nodes: Int[Array, "*rows"]) -> Int[Array, "*rows"]:
        """The number of edges into each node."""
        return take(self.degree, nodes)

    def edges_at(
        self, nodes: Int[Array, "*rows"], offset: Int[Array, "..."], valid: Bool[Array, "..."]
    ) -> tuple[Int[Array, "..."], EdgeData]:
        """Edge `offset` of each node, in the order they were added."""
        return edges_of_rows(take(self.start, nodes), offset, valid, self.indices, self.edge_data)


class TimeSortedGrown(Grown):
    """A growing graph whose rows ascend by `edge_data["time"]`: it can be read as of a time.

    `GrowingGraph.tables` gives one where the graph began as one of `sort_by_time`. Other edges or times make
    it a plain one again.
    """

    __slots__ = ()

    def _replace(self, **fields: Any) -> Grown:  # type: ignore[override]
        return Grown(*super()._replace(**fields))

    def runs(self, nodes: Int[Array, "*rows"]) -> tuple[Int[Array, "*rows"], Int[Array, "*rows"]]:
        """`(start, stop)`: where each node's edges are among all slots, a run in order of time."""
        start = take(self.start, nodes)
        return start, start + take(self.degree, nodes)


class GrowingGraph:
    """A graph with its features, to which nodes and edges are added and from which they are removed.

    Adding an edge costs constant time on average. Removing edges costs the degrees of their destinations,
    removing nodes a pass over all edges: remove many at once. Ids never change and are not given again: a
    removed node keeps its id, without edges and with features 0. Features are finite, `[num_nodes, d]`.

    `tables()` gives what programs read; its shapes change only when a capacity doubles. The tables given
    before are gone then (jax raises an error where they are used). `capacity`, numbers of nodes and of edges,
    is how far the graph grows before that, if edges are only added; by default to one and a half of its size.

    Of a graph of `sort_by_time` the rows stay in the order of `edge_data["time"]`, so that it can be read as
    of a time while it grows: a stream of events. Edges of one call may be in any order; one that is earlier
    than the last of its destination is refused.

    >>> import jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> growing = GrowingGraph(from_edges([1, 0], [0, 1], num_nodes=2), np.ones((2, 4)))
    >>> growing.append_nodes(np.zeros((1, 4)), src=[2, 0], dst=[0, 2])
    array([2])
    >>> graph, features = growing.tables()
    >>> graph.degrees(jnp.arange(3)), growing.graph().num_edges
    (Array([2, 1, 1], dtype=int32), 4)
    """

    def __init__(self, graph: Graph, features: HostTable, capacity: tuple[int, int] | None = None) -> None:
        features = check_features(features, graph.num_nodes)
        validate(graph)
        self.num_nodes = graph.num_nodes
        """Ids given so far: those of removed nodes too."""
        self._by_time = isinstance(graph, TimeSortedGraph)
        nodes, edges = capacity or (self.num_nodes + self.num_nodes // 2, 0)
        nodes = max(16, self.num_nodes, nodes)
        degree = np.diff(np.asarray(graph.indptr))
        self._features = DeviceMirror(np.asarray(features, np.float32), nodes)
        self._start, self._degree = DeviceMirror(np.zeros(0, np.int32), nodes), DeviceMirror(degree, nodes)
        room = _power(degree)
        self._room = pad_rows(room, nodes)
        self._used = int(room.sum())
        most = 2 * edges + 2 * min(edges, nodes)  # room for so many edges, wherever they are
        slots = max(64, self._used + self._used // 2, most + most // 2)
        self._start.host[: self.num_nodes] = np.cumsum(room) - room
        values = {"": np.asarray(graph.indices), **{k: np.asarray(v) for k, v in graph.edge_data.items()}}
        self._edges = {name: DeviceMirror(rows[:0], slots) for name, rows in values.items()}
        place = run_positions(self._start.host[: self.num_nodes], degree)
        for name, rows in values.items():
            self._edges[name].host[place] = rows

    @property
    def num_edges(self) -> int:
        """Edges as they stand."""
        return int(self._degree.host.sum())

    def tables(self) -> tuple[Grown, Float[Array, "capacity d"]]:
        """The graph and the feature table, on the device: only what changed is sent."""
        edges = {name: mirror.device() for name, mirror in self._edges.items()}
        rows = jnp.int32(self.num_nodes), self._start.device(), self._degree.device()
        kind = TimeSortedGrown if self._by_time else Grown
        return kind(*rows, edges.pop(""), edges), self._features.device()

    def graph(self) -> Graph:
        """An ordinary graph of the same edges, each node's in the same order."""
        nodes = np.arange(self.num_nodes)
        dst, place = self._owned(nodes)
        data = {name: mirror.host[place] for name, mirror in self._edges.items()}
        graph = from_edges(data.pop(""), dst, self.num_nodes, **data)
        return TimeSortedGraph(*graph) if self._by_time else graph

    def features(self) -> Float[np.ndarray, "num_nodes d"]:
        """A copy of the features, one row an id."""
        return self._features.host[: self.num_nodes].copy()

    def append_nodes(
        self,
        features: HostTable,
        src: Ids = (),
        dst: Ids = (),
        edge_data: dict[str, Any] | None = None,
    ) -> Int[np.ndarray, " num_new"]:
        """Add nodes with the next ids, which are returned, and edges among them and the others.

        Raises ValueError as `append_edges` does, and for features of another width or not finite; then
        nothing is added.
        """
        rows, width = check_features(features), self._features.host.shape[1]
        if rows.shape[1] != width:
            raise ValueError(f"features must be [num_new, {width}], got shape {rows.shape}")
        count = len(rows)
        edges = self._checked(self.num_nodes + count, src, dst, edge_data or {})
        new = np.arange(self.num_nodes, self.num_nodes + count)
        self.num_nodes += count
        capacity = len(self._room)
        while capacity < self.num_nodes:
            capacity *= 2
        if capacity > len(self._room):
            self._room = pad_rows(self._room, capacity)
            for mirror in (self._features, self._start, self._degree):
                mirror.lengthen(capacity)
        self._features.write(new, rows)
        self._append(*edges)
        return new

    def append_edges(self, src: Ids, dst: Ids, edge_data: dict[str, Any] | None = None) -> None:
        """Add edges between nodes that are there, each the last of its destination's.

        Raises ValueError for ids that no node has, for arrays that are ragged or missing, for data that
        the graph's dtypes do not hold, and, where rows are in order of time, for an edge that is earlier than
        the last into its node; then none is added.
        """
        self._append(*self._checked(self.num_nodes, src, dst, edge_data or {}))

    def remove_edges(self, src: Ids, dst: Ids) -> None:
        """Remove one edge for each pair, the first of parallel ones; the others keep their order.

        Raises ValueError if there is no such edge; then none is removed.
        """
        src, dst = self._ends(self.num_nodes, src, dst)
        wanted, times = np.unique(dst * 2**31 + src, return_counts=True)
        if not len(wanted):
            return
        owner, place = self._owned(np.unique(dst))
        pair = owner * 2**31 + self._edges[""].host[place]
        at = np.minimum(np.searchsorted(wanted, pair), len(wanted) - 1)
        among = wanted[at] == pair
        found = np.bincount(at[among], minlength=len(wanted))
        if len(missing := np.flatnonzero(found < times)):
            v, u = divmod(int(wanted[missing[0]]), 2**31)
            raise ValueError(
                f"no edge {u} -> {v} left to remove: {times[missing[0]]} asked, {found[missing[0]]} there"
            )
        order = np.flatnonzero(among)[np.argsort(at[among], kind="stable")]
        rank = np.arange(len(order)) - np.repeat(np.cumsum(found) - found, found)
        drop = np.zeros(len(pair), bool)
        drop[order] = rank < np.repeat(times, found)
        self._keep(owner, place, ~drop)

    def remove_nodes(self, nodes: Int[HostArray, " num_removed"] | Sequence[int]) -> None:
        """Remove all edges into and out of nodes, and their features. Raises ValueError for unknown ids."""
        gone = np.zeros(self.num_nodes, bool)
        gone[check_ids(nodes, self.num_nodes, "nodes")] = True
        owner, place = self._owned(np.arange(self.num_nodes))
        drop = gone[owner] | gone[self._edges[""].host[place]]
        touched = np.zeros(self.num_nodes, bool)
        touched[owner[drop]] = True
        self._keep(owner[touched[owner]], place[touched[owner]], ~drop[touched[owner]])
        self._features.write(np.flatnonzero(gone), 0)

    def _append(self, src: np.ndarray, dst: np.ndarray, data: dict[str, np.ndarray]) -> None:
        order = np.lexsort((data["time"], dst) if self._by_time else (dst,))
        rows, counts = np.unique(dst, return_counts=True)
        need = self._degree.host[rows] + counts
        over = need > self._room[rows]
        self._move(rows[over], _power(need[over]))
        place = run_positions(self._start.host[rows] + self._degree.host[rows], counts)
        for name, values in {"": src, **data}.items():
            self._edges[name].write(place, values[order])
        self._degree.write(rows, need)

    def _move(self, rows: np.ndarray, room: np.ndarray) -> None:
        """Give rows new places with this much room; make a longer array where they do not fit."""
        total = int(room.sum())
        if self._used + total > len(self._edges[""].host):
            return self._repack(rows, room)
        _, old = self._owned(rows)
        start = self._used + np.cumsum(room) - room
        new = run_positions(start, self._degree.host[rows])
        for mirror in self._edges.values():
            mirror.write(new, mirror.host[old])
        self._start.write(rows, start)
        self._room[rows] = room
        self._used += total

    def _repack(self, rows: np.ndarray, room: np.ndarray) -> None:
        """Put all runs side by side again, and double the array unless a third of it is free then."""
        _, old = self._owned(np.arange(len(self._room)))
        rooms = self._room.copy()
        rooms[rows] = room
        slots, used = len(self._edges[""].host), int(rooms.sum())
        while 3 * used > 2 * slots:
            slots *= 2
        if slots >= 2**31:
            raise ValueError(f"the graph needs {slots} slots, but offsets are int32: split it")
        self._room, start = rooms, (np.cumsum(rooms) - rooms).astype(np.int32)
        new = run_positions(start, self._degree.host)
        for mirror in self._edges.values():
            values = np.zeros((slots, *mirror.host.shape[1:]), mirror.host.dtype)
            values[new] = mirror.host[old]
            mirror.replace(values)
        self._start.replace(start)
        self._used = used

    def _keep(self, owner: np.ndarray, place: np.ndarray, keep: np.ndarray) -> None:
        """Close up the runs of these edges around those that are dropped."""
        rows, counts = np.unique(owner, return_counts=True)
        left = np.bincount(np.searchsorted(rows, owner[keep]), minlength=len(rows))
        new = run_positions(self._start.host[rows], left)
        for mirror in self._edges.values():
            mirror.write(new, mirror.host[place[keep]])
        changed = left < counts
        self._degree.write(rows[changed], left[changed])

    def _owned(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The destination and the slot of every edge into `nodes`."""
        degree = self._degree.host[nodes]
        return np.repeat(nodes.astype(np.int64), degree), run_positions(self._start.host[nodes], degree)

    def _ends(self, limit: int, src: Ids, dst: Ids) -> tuple[np.ndarray, np.ndarray]:
        ends = check_ids(src, limit, "src"), check_ids(dst, limit, "dst")
        check_pairs(*ends, ("src", "dst"))
        return ends[0].astype(np.int64), ends[1].astype(np.int64)

    def _checked(self, limit: int, src: Ids, dst: Ids, data: dict[str, Any]):
        ends = self._ends(limit, src, dst)
        if data.keys() != self._edges.keys() - {""}:
            raise ValueError(f"edge_data must have {sorted(self._edges.keys() - {''})}, got {sorted(data)}")
        count = len(ends[0])
        rows = {
            name: check_edge_rows(name, v, count, like=self._edges[name].host) for name, v in data.items()
        }
        if self._by_time:
            self._check_order(*ends, rows["time"])
        return *ends, rows

    def _check_order(self, src: np.ndarray, dst: np.ndarray, time: np.ndarray) -> None:
        known = np.flatnonzero(dst < self.num_nodes)
        known = known[self._degree.host[dst[known]] > 0]
        last = self._edges["time"].host[self._start.host[dst[known]] + self._degree.host[dst[known]] - 1]
        if len(early := np.flatnonzero(time[known] < last)):
            at, before = int(known[early[0]]), last[early[0]]
            raise ValueError(
                f"edge {src[at]} -> {dst[at]} of time {time[at]} comes after one of {before} into that node: "
                "append edges in the order of their times, or grow a graph that is not one of sort_by_time"
            )


def _power(counts: np.ndarray) -> np.ndarray:
    """The next power of two of each, 4 at least; none for none."""
    exponent = np.ceil(np.log2(np.maximum(counts, 4))).astype(np.int32)
    return np.where(counts > 0, np.int32(1) << exponent, 0).astype(np.int32)
