"""Graphs as of a time: edges that come later are not there, nor, in a window, those that came long before.

Edges have a `time`, and each row is in the order of it: `sort_by_time`. What is visible of a row is a run of
it, found by binary search before anything is drawn: no draw can pick another edge, and nothing is left out
of a draw afterwards.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Num

from jsage.graph.adjacency import Adjacency, edges_of_rows, over_slots
from jsage.graph.graph import Graph
from jsage.graph.search import bisect
from jsage.graph.weighted import UNWEIGHTED, RowWeights, WeightedGraph
from jsage.typing import EdgeData, HostArray

VisibleFn: TypeAlias = Callable[[Any, Any], Adjacency]
"""`(graph, time) -> view`: what may be drawn of a graph as of a time, or of one for each row."""


class GraphBefore(NamedTuple):
    """The edges earlier than `time`, an `Adjacency`: one time for all nodes, or one for each.

    With a `width` only those of the last `width` ticks, `time - width <= edge's time < time`. Its slots have
    an `age` beside the graph's own data, `time - edge's time`: whole numbers where times are (2^31 - 1 where
    int32 holds no more), 0 in the padding. The graph is one of `sort_by_time`, or `cumulate` of one, else
    TypeError: in other rows edges of later times would come in. Times asked are of the edges' kind, whole
    numbers or floats, else TypeError: where one is rounded to the other, before and after are the same.

    >>> from jsage.graph import from_edges, sort_by_time
    >>> graph = sort_by_time(from_edges([1, 2, 3], [0, 0, 0], num_nodes=4, time=[30, 10, 20]))
    >>> GraphBefore(graph, jnp.array(30)).degrees(jnp.array([0, 1]))
    Array([2, 0], dtype=int32)
    """

    graph: Graph | WeightedGraph | Any
    time: Num[HostArray, "*#rows"]
    width: Num[HostArray, "*#rows"] | float | None = None

    _own_time = False  # whether edges of `time` itself are visible

    @property
    def num_nodes(self) -> int | Any:
        """The graph's own: nodes without visible edges too."""
        return self.events.num_nodes

    @property
    def events(self) -> Any:
        """The graph whose rows are in order of time, all its edges; TypeError where there is none."""
        graph = self.graph.graph if isinstance(self.graph, WeightedGraph) else self.graph
        if not hasattr(graph, "runs"):
            raise TypeError(
                "a graph is read as of a time in rows sorted by time, and a "
                f"{type(graph).__name__} need not have them: pass jsage.graph.sort_by_time(graph), made "
                "once on the host"
            )
        return graph

    @property
    def id_limit(self) -> int | Any:
        """The graph's own."""
        return self.graph.id_limit

    @property
    def edge_data(self) -> EdgeData:
        """The graph's own; each slot has its `age` beside it."""
        return self.graph.edge_data

    def bounds(self, nodes: Int[Array, "*rows"]) -> tuple[Int[Array, "*rows"], Int[Array, "*rows"]]:
        """`(start, stop)`: where each node's visible edges are among all edges of the graph."""
        graph = self.events
        times, time = graph.edge_data["time"], self._asked(nodes)
        start, stop = graph.runs(nodes)
        end = bisect(times, start, stop, time, after=self._own_time)
        if self.width is None:
            return start, end
        low = time - jnp.asarray(self.width, time.dtype)
        first = bisect(times, start, end, low, after=self._own_time)
        return jnp.where(low > time, start, first), end  # a time below the least there is: none is earlier

    def degrees(self, nodes: Int[Array, "*rows"]) -> Int[Array, "*rows"]:
        """The number of visible edges into each node."""
        start, stop = self.bounds(nodes)
        return stop - start

    def edges_at(
        self, nodes: Int[Array, "*rows"], offset: Int[Array, "..."], valid: Bool[Array, "..."]
    ) -> tuple[Int[Array, "..."], EdgeData]:
        """The source and the data of each node's visible edge number `offset`, the earliest first."""
        graph = self.events
        start = graph.runs(nodes)[0] if self.width is None else self.bounds(nodes)[0]
        src, data = edges_of_rows(start, offset, valid, graph.indices, graph.edge_data)
        return src, self.with_age(data, over_slots(self._asked(nodes), offset.ndim), valid)

    def with_age(self, edge_data: EdgeData, asked: Array, valid: Any = True) -> EdgeData:
        """The data of edges with their `age` at the times asked; 0 where not valid, and before they are."""
        if "age" in edge_data:
            raise ValueError(
                "edge_data has an 'age', the name of what a graph as of a time says of each edge: rename it"
            )
        return {**edge_data, "age": jnp.where(valid, _age(asked, edge_data["time"]), 0)}

    def shows(self, time: Num[HostArray, " edges"]) -> Bool[np.ndarray, " edges"]:
        """Whether edges of these times are visible; on the host, of a graph as of one time."""
        asked, time = np.asarray(self.time).item(), np.asarray(time)
        visible = time <= asked if self._own_time else time < asked
        if self.width is None:
            return visible
        low = asked - np.asarray(self.width).item()
        return visible & (time > low if self._own_time else time >= low)

    def row_weights(self, nodes: Int[Array, " rows"]) -> RowWeights:
        """The weights of the nodes' edges, the visible ones alone to be drawn: of a graph of `cumulate`."""
        if not isinstance(self.graph, WeightedGraph):
            raise TypeError(UNWEIGHTED.format(type(self.graph).__name__))
        weights, (start, stop) = self.graph.row_weights(nodes), self.bounds(nodes)
        return weights._replace(first=start - weights.start, stop=stop - weights.start)

    def _asked(self, nodes: Array) -> Array:
        """A time for each row, of the edges' kind and of 32 bits at least."""
        times, time = self.events.edge_data["time"], jnp.asarray(self.time)
        wanted, width = _kind(times.dtype), jnp.asarray(0 if self.width is None else self.width)
        if _kind(time.dtype) != wanted or _kind(width.dtype) not in (wanted, "whole"):
            raise TypeError(
                f"times asked, and widths, must be of the kind of the edges' times, {times.dtype}, got "
                f"{time.dtype} and {width.dtype}: convert all alike (jsage.graph.ticks makes int32 of dates)"
            )
        if time.size != 1 and time.shape != nodes.shape:
            raise ValueError(
                f"a graph is read as of one time, or of one for each of the rows {nodes.shape}, got "
                f"{time.shape} times: sample_temporal_blocks has them follow its seeds from hop to hop"
            )
        dtype = jnp.promote_types(jnp.promote_types(time.dtype, times.dtype), jnp.int32)
        return jnp.broadcast_to(time, nodes.shape).astype(dtype)


class GraphUpTo(GraphBefore):
    """The edges no later than `time`: those of that very time too, as `GraphBefore` otherwise.

    With a `width`, `time - width < edge's time <= time`.

    >>> from jsage.graph import from_edges, sort_by_time
    >>> graph = sort_by_time(from_edges([1, 2, 3], [0, 0, 0], num_nodes=4, time=[30, 10, 20]))
    >>> GraphUpTo(graph, jnp.array(30), width=jnp.array(20)).degrees(jnp.array([0, 1]))
    Array([2, 0], dtype=int32)
    """

    __slots__ = ()

    _own_time = True


def before(graph: Any, time: Num[HostArray, "*#rows"]) -> GraphBefore:
    """What was before a time: for predicting at that time what happens then.

    >>> from jsage.graph import from_edges, sort_by_time
    >>> graph = sort_by_time(from_edges([1, 2], [0, 0], num_nodes=3, time=[10, 20]))
    >>> int(before(graph, jnp.array(20)).degrees(jnp.array(0)))
    1
    """
    return GraphBefore(graph, time)


def up_to(graph: Any, time: Num[HostArray, "*#rows"]) -> GraphUpTo:
    """What was at a time or before: where what is predicted comes after it.

    >>> from jsage.graph import from_edges, sort_by_time
    >>> graph = sort_by_time(from_edges([1, 2], [0, 0], num_nodes=3, time=[10, 20]))
    >>> int(up_to(graph, jnp.array(20)).degrees(jnp.array(0)))
    2
    """
    return GraphUpTo(graph, time)


def within(width: Num[HostArray, "*#rows"] | int | float, visible: VisibleFn = before) -> VisibleFn:
    """What was in the last `width` ticks: windows of times that follow one another by `width` share no edge.

    `within(width)` sees `time - width <= edge's time < time`, `within(width, up_to)` sees
    `time - width < edge's time <= time`. Raises ValueError for a width that is not positive.

    >>> from jsage.graph import from_edges, sort_by_time
    >>> graph = sort_by_time(from_edges([1, 2], [0, 0], num_nodes=3, time=[10, 20]))
    >>> int(within(10)(graph, jnp.array(21)).degrees(jnp.array(0)))
    1
    """
    if isinstance(width, int | float | np.ndarray | np.generic) and np.min(width) <= 0:
        raise ValueError(f"a window is a positive number of ticks, got {width}: all the past has none")

    def windowed(graph: Any, time: Num[HostArray, "*#rows"]) -> Adjacency:
        view: Any = visible(graph, time)
        return view._replace(width=jnp.asarray(width))

    return windowed


def check_one_time(graph: Any, what: str) -> None:
    """ValueError for a view, or one below others, whose rows have times of their own.

    >>> from jsage.graph import from_edges, sort_by_time
    >>> graph = sort_by_time(from_edges([1], [0], num_nodes=2, time=[10]))
    >>> check_one_time(GraphBefore(graph, jnp.array([10, 20])), "a compacted frontier")
    Traceback (most recent call last):
    ValueError: a compacted frontier has one row a node, whatever led there, so it is as of one time, got 2...
    """
    while graph is not None:
        if isinstance(graph, GraphBefore) and jnp.size(graph.time) != 1:
            raise ValueError(
                f"{what} has one row a node, whatever led there, so it is as of one time, got "
                f"{jnp.size(graph.time)}: sample_temporal_blocks has a time for each seed, and jax.vmap runs "
                "one time after the other"
            )
        graph = getattr(graph, "graph", None)


def _kind(dtype: Any) -> str:
    """Floats, whole numbers that signed ones hold, or what is neither."""
    if jnp.issubdtype(dtype, jnp.floating):
        return "floats"
    whole = jnp.issubdtype(dtype, jnp.signedinteger) or dtype in (jnp.uint8, jnp.uint16)
    return "whole" if whole else str(dtype)


def _age(asked: Array, time: Array) -> Array:
    """`asked - time`, or 0 where that is negative, or the most that the dtype holds, of 32 bits at least."""
    asked = asked.astype(jnp.promote_types(jnp.promote_types(asked.dtype, time.dtype), jnp.int32))
    age = asked - time.astype(asked.dtype)
    if jnp.issubdtype(asked.dtype, jnp.integer):
        age = jnp.where(age < 0, jnp.iinfo(asked.dtype).max, age)
    return jnp.where(asked < time, 0, age)
