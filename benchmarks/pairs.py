"""The training steps on pairs of nodes that are measured: from walks, without labels, and from edges.

tables = place(data.open(folder))
step = make_pair_step("skip_gram", Sizes())
state = jax.jit(step.start)(fast_key(0), tables)
epoch = jax.jit(step.epoch, donate_argnums=0)
state, metrics = epoch(state, tables, jnp.arange(16))  # a batch of walks is drawn from the state's key alone
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from benchmarks.step import Blocks
from experiments.unsupervised.objectives import draw_partners
from jsage.data import Dataset, to_device_table
from jsage.graph import Graph, in_degrees, sort_rows
from jsage.losses import info_nce as info_nce_loss
from jsage.losses import link_cross_entropy as link_loss
from jsage.losses import masked_mean
from jsage.losses import skip_gram as skip_gram_loss
from jsage.nn import GraphSAGE, SAGEConv, cosine, dot
from jsage.sampling import LinkBatch, sample_blocks, sample_link_blocks, split
from jsage.sampling.negatives import AliasTable, Choice, by_degree, choice, exclude_edges, in_batch
from jsage.train import TrainState, init_state, make_update, train_epoch
from jsage.typing import PRNGKey

Drawn = tuple[LinkBatch, Array]
"""Pairs with their negatives, and `[b, q]`: which negatives count."""
Found = tuple[TrainState, dict[str, Array]]


class PairTables(NamedTuple):
    """What a step reads; always an argument, never closed over."""

    graph: Graph
    """With sorted rows."""
    features: Array
    starts: Choice
    """The nodes that have an edge."""
    noise: AliasTable
    """Negatives, in proportion to `degree ** 0.75`."""


class Sizes(NamedTuple):
    """What the steps share."""

    fanouts: tuple[int, ...] = (25, 10)
    seeds: int = 1024
    """The nodes that a step embeds, or up to two more than it does."""
    hidden: int = 256
    """The width of every layer, the embeddings too."""


class Kind(NamedTuple):
    """One way to learn from pairs."""

    positives: Callable[[PRNGKey, PairTables, Any, int], tuple[Array, Array, Array]]
    """`(key, tables, batch, count) -> (src, dst, mask)`"""
    negatives: Callable[[PRNGKey, PairTables, Array], tuple[Array, Array]]
    """`(key, tables, src) -> (nodes, valid)`"""
    losses: Callable[[Array, LinkBatch, Array], Array]
    """`(embeddings, pairs, valid) -> [b]`"""
    ends: int
    """How many seeds each pair has, its own negatives among them."""
    shared: int = 0
    """How many negatives the batch shares."""
    exclude: bool = False
    """Whether the pairs' own edges are left out of the neighborhoods."""

    def count(self, seeds: int) -> int:
        """The number of pairs in a batch."""
        return (seeds - self.shared) // self.ends

    def limit(self, seeds: int) -> int:
        """The most numbers that a step may scatter or sort: the seeds, or the scores of all against all."""
        return self.count(seeds) ** 2 if self.losses is info_nce else seeds


class PairStep(NamedTuple):
    """No function is jitted. Parts of `benchmarks.parts` take it as they take a `benchmarks.step.Step`."""

    start: Callable[[PRNGKey, PairTables], TrainState]
    epoch: Callable[[TrainState, PairTables, Any], Found]
    """`(state, tables, batches) -> (state, sums)`: a scan of steps; `batches` are numbers, or edges."""
    positives: Callable[[PRNGKey, PairTables, Any], tuple[Array, Array, Array]]
    """`(key, tables, batch) -> (src, dst, mask)`"""
    negatives: Callable[[PRNGKey, PairTables, Array], tuple[Array, Array]]
    """`(key, tables, src) -> (nodes, valid)`"""
    sample: Callable[[PRNGKey, Graph, LinkBatch], Blocks]
    """`(key, graph, pairs) -> blocks`"""
    apply: Callable[[Any, PairTables, Blocks], Array]
    """`(params, tables, blocks) -> embeddings`"""
    update: Callable[[TrainState, PairTables, Blocks, Drawn], Found]
    """`(state, tables, blocks, drawn) -> (state, sums)`: the rest of a step."""


def make_pair_step(kind: str, sizes: Sizes, conv: Callable[..., SAGEConv] = SAGEConv) -> PairStep:
    """One layer a fanout, on trees: walks or edges, negatives, blocks, loss and Adam in one step."""
    way = KINDS[kind]
    model = GraphSAGE(sizes.hidden, sizes.hidden, num_layers=len(sizes.fanouts), conv=conv)
    optimizer = optax.adam(0.003)

    def start(key: PRNGKey, tables: PairTables) -> TrainState:
        blocks = sample_blocks(key, tables.graph, jnp.zeros(1, jnp.int32), sizes.fanouts)
        params = model.init(key, tables.features, blocks)
        return init_state(jax.random.fold_in(key, 1), params, optimizer)

    def positives(key: PRNGKey, tables: PairTables, batch: Any) -> tuple[Array, Array, Array]:
        return way.positives(key, tables, batch, way.count(sizes.seeds))

    def sample(key: PRNGKey, graph: Graph, pairs: LinkBatch) -> Blocks:
        return sample_link_blocks(key, graph, pairs, sizes.fanouts, exclude=way.exclude)

    def apply(params, tables, blocks, key=None) -> Any:
        return model.apply(params, tables.features, blocks, rngs=None if key is None else {"order": key})

    def loss_of(params, stats, blocks, drawn, key, *, tables):
        pairs, valid = drawn
        losses = way.losses(apply(params, tables, blocks, key), pairs, valid)
        sums = {"loss": losses.sum(), "weight": pairs.mask.sum().astype(jnp.float32)}
        return masked_mean(losses, pairs.mask), (sums, stats)

    def epoch(state: TrainState, tables: PairTables, batches: Any) -> Found:
        def loss_fn(params, stats, batch, key):
            first, second, third, last = jax.random.split(key, 4)
            src, dst, mask = positives(first, tables, batch)
            nodes, valid = way.negatives(second, tables, src)
            pairs = LinkBatch(src, dst, nodes, mask)
            blocks = sample(third, tables.graph, pairs)
            return loss_of(params, stats, blocks, (pairs, valid), last, tables=tables)

        return train_epoch(make_update(loss_fn, optimizer), state, batches)

    def update(state: TrainState, tables: PairTables, blocks: Blocks, drawn: Drawn) -> Found:
        def loss_fn(params, stats, batch, key):
            return loss_of(params, stats, blocks, batch, key, tables=tables)

        return make_update(loss_fn, optimizer)(state, drawn)

    return PairStep(start, epoch, positives, way.negatives, sample, apply, update)


def place(dataset: Dataset) -> PairTables:
    """The tables on the default device; rows are sorted and the samplers made on the host."""
    if dataset.features is None:
        raise ValueError("the step needs features: make a graph with benchmarks.make_graph")
    graph = sort_rows(dataset.graph._replace(edge_data={}))
    noise, starts = by_degree(graph), choice(np.flatnonzero(in_degrees(graph)))
    return jax.device_put(PairTables(graph, to_device_table(dataset.features), starts, noise))  # pyright: ignore[reportArgumentType]


def some_edges(graph: Graph, seeds: int, steps: int) -> Array:
    """`[steps, b, 2]`: random edges of the graph, `source, destination`, as the batches of a link step."""
    shape = steps, KINDS["links"].count(seeds)
    at = np.random.default_rng(0).integers(0, graph.num_edges, shape)
    dst = np.searchsorted(np.asarray(graph.indptr), at, side="right") - 1
    return jnp.asarray(np.stack([np.asarray(graph.indices)[at], dst], -1), jnp.int32)


def by_walks(key: PRNGKey, tables: PairTables, batch: Any, count: int) -> tuple[Array, Array, Array]:
    """Starts, each with one of the nodes that a walk from it visits."""
    start, walk, pick = jax.random.split(key, 3)
    src = tables.starts(start, (count,))
    return src, *draw_partners((walk, pick), tables.graph, src, LENGTH)


def by_edges(key: PRNGKey, tables: PairTables, batch: Array, count: int) -> tuple[Array, Array, Array]:
    """The edges of the batch."""
    return batch[:, 0], batch[:, 1], jnp.ones(count, bool)


def shared(key: PRNGKey, tables: PairTables, src: Array) -> tuple[Array, Array]:
    """The batch's own."""
    nodes = tables.noise(key, (SHARED,))
    return nodes, src[:, None] != nodes[None]


def others(key: PRNGKey, tables: PairTables, src: Array) -> tuple[Array, Array]:
    """None are drawn: the other pairs' partners are negatives."""
    return jnp.zeros(0, jnp.int32), jnp.zeros((src.shape[0], 0), bool)


def no_edges(key: PRNGKey, tables: PairTables, src: Array) -> tuple[Array, Array]:
    """One for each pair, that is no edge."""
    first, again = jax.random.split(key)
    nodes = tables.noise(first, (src.shape[0], 1))
    return exclude_edges(again, tables.graph, src, nodes, tables.noise)


def skip_gram(rows: Array, pairs: LinkBatch, valid: Array) -> Array:
    src, dst, noise = split(rows, pairs)
    return skip_gram_loss(dot(src, dst), dot(src, noise[None]), pairs.mask, valid)


def info_nce(rows: Array, pairs: LinkBatch, valid: Array) -> Array:
    src, dst, _ = split(rows, pairs)
    valid = in_batch(pairs.src, pairs.dst, pairs.mask) & (pairs.src[:, None] != pairs.dst[None])
    return info_nce_loss(cosine(src[:, None], dst[None]), pairs.mask, valid, 0.5)


def links(rows: Array, pairs: LinkBatch, valid: Array) -> Array:
    src, dst, nodes = split(rows, pairs)
    return link_loss(dot(src, dst), dot(src, nodes), pairs.mask, valid)


LENGTH, SHARED = 5, 20
"""Steps of a walk, and negatives of a batch."""
KINDS = {
    "skip_gram": Kind(by_walks, shared, skip_gram, ends=2, shared=SHARED),
    "info_nce": Kind(by_walks, others, info_nce, ends=2),
    "links": Kind(by_edges, no_edges, links, ends=3, exclude=True),
    "links_kept": Kind(by_edges, no_edges, links, ends=3),
}
"""`links_kept` leaves the pairs' own edges in their neighborhoods: what taking them out costs."""
