"""Array aliases and the signatures of the parts that users plug in.

Shapes are written in jaxtyping's notation: ``Int[Array, "num_nodes+1"]`` is an integer array of one axis.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Scalar

PRNGKey: TypeAlias = Key[Array, ""]
"""One typed key, as `jax.random.key` or `jsage.sampling.fast_key` makes it."""

HostArray: TypeAlias = np.ndarray | Array
"""An array on the host or on a device; host functions take either."""


@runtime_checkable
class SparseTable(Protocol):
    """A SciPy matrix or array of any format."""

    shape: Any
    dtype: Any

    def toarray(self) -> Any:
        """The same as a dense array."""
        ...


HostTable: TypeAlias = np.ndarray | Array | SparseTable
"""Rows of features: host functions take SciPy's too, and make them dense."""

EdgeData: TypeAlias = Mapping[str, Array]
"""Named arrays with one row an edge (of a graph) or a slot (of a block); `"weight"` multiplies messages."""

EdgeType: TypeAlias = tuple[str, str, str]
"""`(source type, relation, destination type)`: what the edges of one relation join."""

DrawFn: TypeAlias = Callable[
    [PRNGKey, Int[Array, " rows"], int], tuple[Int[Array, "rows k"], Bool[Array, "rows k"]]
]
"""`(key, n, k) -> (offset, mask)`: which `k` of row `i`'s `n[i]` entries are drawn."""


@runtime_checkable
class GraphDraw(Protocol):
    """A draw that sees more than how many edges a node has: their weights, sources, the node's id."""

    def offsets(
        self, key: PRNGKey, graph: Any, nodes: Int[Array, " rows"], k: int, /
    ) -> tuple[Int[Array, "rows k"], Bool[Array, "rows k"]]:
        """`(offset, mask)`: which `k` of each node's edges are drawn, by number; valid slots come first."""
        ...


AnyDraw: TypeAlias = DrawFn | GraphDraw
"""What says which edges are drawn: samplers take either kind."""


@runtime_checkable
class HopFn(Protocol):
    """One hop of a minibatch, as `jsage.sampling.sample_neighbors` draws it from some graph."""

    def __call__(self, key: PRNGKey, frontier: Any, fanout: Any, /) -> Any:
        """What each node of the frontier reads: a block over node ids, `fanout` slots a node."""
        ...


AggregateFn: TypeAlias = Callable[[Float[Array, "num_src d"], Any], Float[Array, "num_dst d_out"]]
"""`(h, block) -> pooled`: reduces the rows that a block's destinations read."""

MessageFn: TypeAlias = Callable[[Any, Any, EdgeData], Any]
"""`(dst_rows, src_rows, edge_rows) -> message`: what an edge brings, row by row; it may close over arrays.

The first two are rows of the trees that `reduce` was given, at the edge's destination and at its source;
`edge_rows` holds the edge's row of each array of `edge_data`. All have one row an edge, and so has the
result, a tree of arrays. Messages do not see one another.
"""

Metrics: TypeAlias = dict[str, Scalar]
"""Named sums over the valid rows of a batch; divide by the sum of weights once, at the end."""

LossFn: TypeAlias = Callable[[PyTree, PyTree, Any, PRNGKey], tuple[Float[Array, ""], tuple[Metrics, PyTree]]]
"""`(params, stats, batch, key) -> (loss, (metrics, stats))`; `stats` holds variables that are not trained."""


@runtime_checkable
class LayeredModel(Protocol):
    """What exact inference asks of a flax model: that it can be run one layer at a time.

    `GraphSAGE` is one. `layer`, `inputs` and `finish` are called through `apply(params, ..., method=name)`.
    """

    num_layers: int
    identity: tuple[int, int] | None
    """`(num_nodes, width)` of learned embeddings of its own, one a node; None: it reads features alone."""
    jump: Callable[..., Any] | None
    """Whether `finish` reads the rows of all layers; None: the last layer's rows are the result."""

    def apply(self, variables: PyTree, *args: Any, method: str) -> Any:
        """Flax's: a method run with these parameters."""
        ...

    def layer(self, k: int, h: Float[Array, "num_src d"], block: Any) -> Float[Array, "num_dst d_out"]:
        """Layer `k` alone: rows at a block's sources to rows at its destinations, deterministic."""
        ...

    def inputs(
        self, h: Float[Array, "rows d"] | None, nodes: Int[Array, " rows"]
    ) -> Float[Array, "rows d_in"]:
        """What the first layer reads of these nodes."""
        ...

    def finish(self, kept: Sequence[Float[Array, "rows d"]]) -> Float[Array, "rows out"]:
        """The result where there is `jump`, from every layer's rows."""
        ...
