"""GraphSAINT (Zeng et al., 2020): random subgraphs, and the norms that make sums over them unbiased.

`saint_nodes`, `saint_edges` and `saint_walks` draw a subgraph. `measure_saint` counts, once, how often each
node and each edge is in one; with these counts `estimated_batch` weighs what it draws, so that on average
sums over a subgraph are those over the whole graph.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num, PyTree

from jsage._internal.arrays import take
from jsage.blocks import SUM, Reduction, Segments
from jsage.graph import Graph
from jsage.sampling.draws import with_replacement
from jsage.sampling.neighbors import sample_neighbors
from jsage.sampling.subgraph import Subgraph, induced_batch
from jsage.sampling.walks import random_walk
from jsage.typing import HostArray, MessageFn, PRNGKey

SubgraphFn: TypeAlias = Callable[[PRNGKey, Graph], Subgraph]
"""`(key, graph) -> subgraph`, as `partial(saint_nodes, size=1000, width=32)` draws it."""


class EstimatedBlock(Segments):
    """A subgraph's edges, weighed so that `sum`, `mean` and `gcn` estimate those of whole neighborhoods.

    Degrees are those of the whole graph, for means divide by them. Maxima and attention have no such
    estimate: TypeError.

    >>> weight = {"weight": jnp.array([8.0])}
    >>> block = EstimatedBlock(jnp.array([1]), jnp.array([0]), jnp.array([4, 1]), weight)
    >>> block.sum(jnp.array([[1.0], [3.0]])).ravel()
    Array([24.,  0.], dtype=float32)
    """

    __slots__ = ()

    def max(self, h: Num[HostArray, "num_src *d"]) -> Num[Array, "num_dst *d"]:
        """Refused."""
        raise TypeError(_REFUSED)

    def reduce(
        self, message: MessageFn, reduction: Reduction, dst: PyTree, src: PyTree, own: PyTree = None
    ) -> PyTree:
        """A sum of messages; other reductions are refused."""
        if (reduction.start, reduction.step) != (SUM.start, SUM.step):
            raise TypeError(_REFUSED)
        return super().reduce(message, reduction, dst, src, own)


_REFUSED = (
    "a subgraph has unbiased estimates of sums alone: expected the aggregators sum, mean or gcn, got another "
    "reduction: use those, or the subgraph as it is drawn, without norms"
)


class Saint(NamedTuple):
    """A graph with the norms of a sampler of subgraphs: made by `measure_saint`."""

    graph: Graph
    """With `edge_data["norm"]`, `p_v / p_uv`: the share of subgraphs that hold `v`, by that of the edge."""
    node: Float[Array, " num_nodes"]
    """`1 / p_v`: what a node's loss is multiplied by."""


def saint_nodes(key: PRNGKey, graph: Graph, size: int, width: int) -> Subgraph:
    """The subgraph of `size` nodes, drawn with replacement in proportion to `1 + out_degree`.

    As the authors' code does, except for the 1, by which nodes without edges are drawn too. `width` is that
    of `induced_batch`. Raises ValueError for a graph whose nodes and edges are 2^31 or more.

    >>> from jsage.graph import from_edges
    >>> graph = from_edges([0, 1, 2, 3], [1, 0, 3, 2], num_nodes=4)
    >>> saint_nodes(jax.random.key(0), graph, size=3, width=4).nodes.shape
    (3,)
    """
    total = graph.num_edges + graph.num_nodes
    if total >= 2**31:
        raise ValueError(f"nodes and edges must be fewer than 2^31 together, got {total}: use saint_walks")
    pick, hop = jax.random.split(key)
    at = jax.random.randint(pick, (size,), 0, total)
    nodes = jnp.maximum(at - graph.num_edges, 0)
    if graph.num_edges:
        source = take(graph.indices, jnp.minimum(at, graph.num_edges - 1))
        nodes = jnp.where(at < graph.num_edges, source, nodes)
    return induced_batch(hop, graph, nodes, width)


def saint_edges(key: PRNGKey, graph: Graph, size: int, width: int) -> Subgraph:
    """The subgraph of the ends of `size` edges: a uniformly drawn node, and an edge into it, also uniform.

    In a graph walked both ways an edge is drawn in proportion to `1 / d_u + 1 / d_v`, the paper's (section
    3.3). A node without edges is drawn alone. `width` is that of `induced_batch`.

    >>> from jsage.graph import from_edges
    >>> graph = from_edges([0, 1, 2, 3], [1, 0, 3, 2], num_nodes=4)
    >>> saint_edges(jax.random.key(0), graph, size=3, width=4).nodes.shape
    (6,)
    """
    pick, draw, hop = jax.random.split(key, 3)
    ends = jax.random.randint(pick, (size,), 0, graph.num_nodes)
    others = sample_neighbors(draw, graph, ends, 1, draw=with_replacement).src[:, 0]
    return induced_batch(hop, graph, jnp.concatenate([ends, others]), width)


def saint_walks(key: PRNGKey, graph: Graph, roots: int, length: int, width: int) -> Subgraph:
    """The subgraph of all nodes that walks of `length` steps from `roots` uniformly drawn nodes visit.

    `width` is that of `induced_batch`, the walks those of `random_walk`.

    >>> from jsage.graph import from_edges
    >>> graph = from_edges([0, 1, 2, 3], [1, 0, 3, 2], num_nodes=4)
    >>> saint_walks(jax.random.key(0), graph, roots=2, length=2, width=4).nodes.shape
    (6,)
    """
    pick, walk, hop = jax.random.split(key, 3)
    starts = jax.random.randint(pick, (roots,), 0, graph.num_nodes)
    return induced_batch(hop, graph, random_walk(walk, graph, starts, length).nodes.ravel(), width)


def measure_saint(key: PRNGKey, graph: Graph, sample: SubgraphFn, *, repeats: int) -> Saint:
    """The norms of a sampler, counted on `repeats` subgraphs (Zeng et al., 2020, section 3.2): on the host.

    The aggregator's `alpha_uv = p_uv / p_v` counts edges that `width` left out as missing, so what is cut is
    made up for too. What was in no subgraph counts as in one, where PyG and the authors put fixed numbers.
    The counts' own error falls as `1 / sqrt(repeats * p)`. Raises ValueError for `repeats` below 1.

    >>> from jsage.graph import from_edges
    >>> graph = from_edges([0, 1], [1, 0], num_nodes=2)
    >>> sample = partial(saint_nodes, size=1, width=2)
    >>> saint = measure_saint(jax.random.key(0), graph, sample, repeats=100)
    >>> bool(jnp.isclose(1 / saint.node[0] + 1 / saint.node[1], 1))
    True
    """
    if repeats < 1:
        raise ValueError(f"repeats is the number of subgraphs that are counted, at least 1, got {repeats}")

    @partial(jax.jit, donate_argnums=0)
    def count(counts: list[Array], graph: Graph, number: Int[Array, ""]) -> list[Array]:
        block, *found = sample(jax.random.fold_in(key, number), graph)
        found = found, (block.edge_data["edge"], block.dst < block.num_dst)
        pairs = zip(counts, found, strict=True)
        return [count.at[ids].add(mask.astype(jnp.int32)) for count, (ids, mask) in pairs]

    numbered = {"edge": jax.device_put(np.arange(graph.num_edges, dtype=np.int32))}
    counts = jax.device_put([np.zeros(size, np.int32) for size in (graph.num_nodes, graph.num_edges)])
    for number in range(repeats):
        counts = count(counts, graph._replace(edge_data=numbered), np.int32(number))
    nodes, edges = (np.maximum(x, 1).astype(np.float32) for x in counts)
    norm = jax.device_put(np.repeat(nodes, np.diff(graph.indptr)) / edges)
    node = jax.device_put(np.float32(repeats) / nodes)
    return Saint(graph._replace(edge_data={**graph.edge_data, "norm": norm}), node)


def estimated_batch(key: PRNGKey, saint: Saint, sample: SubgraphFn) -> tuple[Subgraph, Float[Array, " rows"]]:
    """A subgraph whose sums are unbiased estimates, and its rows' weights in a loss; inside jit.

    A layer's `sum_u e_uv h_u` is that over the whole neighborhood, on average, for each node that is in the
    subgraph (`EstimatedBlock`). The weights are `1 / p_v`, 0 in the padding: `sum_v weight_v loss_v` is the
    sum of the losses of all nodes, on average, and by their number the mean.

    >>> from jsage.graph import from_edges
    >>> graph, sample = from_edges([0, 1], [1, 0], num_nodes=2), partial(saint_nodes, size=1, width=2)
    >>> saint = measure_saint(jax.random.key(0), graph, sample, repeats=100)
    >>> batch, weight = estimated_batch(jax.random.key(1), saint, sample)
    >>> batch.block.degrees(), bool(weight[0] == saint.node[batch.nodes[0]])
    (Array([1], dtype=int32), True)
    """
    block, nodes, mask = sample(key, saint.graph)
    data = {name: x for name, x in block.edge_data.items() if name != "norm"}
    norm = block.edge_data["norm"]
    data["weight"] = norm * data["weight"].astype(norm.dtype) if "weight" in data else norm
    block = EstimatedBlock(block.src, block.dst, saint.graph.degrees(nodes), data)
    return Subgraph(block, nodes, mask), jnp.where(mask, take(saint.node, nodes), 0)
