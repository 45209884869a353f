"""Array aliases and the signatures of the parts that users plug in.

Shapes are written in jaxtyping's notation: ``Int[Array, "num_nodes+1"]`` is an integer array of one axis.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Scalar

PRNGKey: TypeAlias = Key[Array, ""]
"""One typed key, as `jax.random.key` makes it; `philox4x32` keys are the fastest on a CPU."""

HostArray: TypeAlias = np.ndarray | Array
"""An array on the host or on a device; host functions take either."""

EdgeData: TypeAlias = Mapping[str, Array]
"""Named arrays with one row an edge (of a graph) or a slot (of a block); `"weight"` multiplies messages."""

DrawFn: TypeAlias = Callable[
    [PRNGKey, Int[Array, " rows"], int], tuple[Int[Array, "rows k"], Bool[Array, "rows k"]]
]
"""`(key, n, k) -> (offset, mask)`: which `k` of row `i`'s `n[i]` entries are drawn."""


@runtime_checkable
class HopFn(Protocol):
    """One hop of a minibatch, as `jsage.sampling.sample_neighbors` draws it from some graph."""

    def __call__(self, key: PRNGKey, frontier: Any, fanout: Any, /) -> Any:
        """What each node of the frontier reads: a block over node ids, `fanout` slots a node."""
        ...


AggregateFn: TypeAlias = Callable[[Float[Array, "num_src d"], Any], Float[Array, "num_dst d_out"]]
"""`(h, block) -> pooled`: reduces the rows that a block's destinations read."""

Metrics: TypeAlias = dict[str, Scalar]
"""Named sums over the live rows of a batch; divide by the sum of weights once, at the end."""

LossFn: TypeAlias = Callable[[PyTree, PyTree, Any, PRNGKey], tuple[Float[Array, ""], tuple[Metrics, PyTree]]]
"""`(params, stats, batch, key) -> (loss, (metrics, stats))`; `stats` holds variables that are not trained."""


@runtime_checkable
class Folds(Protocol):
    """A block that walks its slots in order and never holds all of them: whole neighbourhoods."""

    def fold(
        self,
        h: Float[Array, "num_src d"],
        start: Callable[[int], Any],
        step: Callable[[Any, Float[Array, "rows d"], Bool[Array, " rows"]], Any],
    ) -> Any:
        """The states of all destinations: `start(rows)`, then `step(state, rows, live)` for each slot."""
        ...
