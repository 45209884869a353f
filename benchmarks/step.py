"""The training step that is measured: sampled blocks, mean GraphSAGE, cross-entropy, Adam. One place for all.

tables = place(data.open(folder))
capacities = measure_capacities(key, tables.graph, train, 1024, (25, 10))
step = make_step((25, 10), num_classes, capacities=capacities)
state = jax.jit(step.start)(fast_key(0), tables)
epoch = jax.jit(step.epoch, donate_argnums=0)
state, metrics = epoch(state, tables, *jsage.epoch(key, train, 1024))
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from jsage.blocks.layout import Block
from jsage.data import Dataset, to_device_table
from jsage.graph import Graph
from jsage.losses import cross_entropy, masked_mean
from jsage.nn import GraphSAGE
from jsage.sampling import Capacities, deduplicated_loss, sample_blocks, sample_compact_blocks
from jsage.train import TrainState, init_state, make_update, train_epoch
from jsage.typing import PRNGKey

Blocks = tuple[Block, ...]


class Tables(NamedTuple):
    """What a step reads; always an argument, never closed over."""

    graph: Graph
    features: Array
    labels: Array


class Step(NamedTuple):
    """No function is jitted."""

    start: Callable[[PRNGKey, Tables], TrainState]
    epoch: Callable[[TrainState, Tables, Array, Array], tuple[TrainState, dict[str, Array]]]
    """`(state, tables, seeds[steps, batch], mask[steps, batch]) -> (state, sums)`: a scan of steps."""
    sample: Callable[[PRNGKey, Graph, Array], tuple[Blocks, Array]]
    """`(key, graph, seeds) -> (blocks, fits)`: what a step draws; without its fallback, if it compacts."""
    apply: Callable[[Any, Tables, Blocks], Array]
    """`(params, tables, blocks) -> logits`"""
    update: Callable[[TrainState, Tables, Blocks, tuple[Array, Array]], tuple[TrainState, dict[str, Array]]]
    """`(state, tables, blocks, (seeds, mask)) -> (state, sums)`: the rest of a step."""


def make_step(
    fanouts: Sequence[int],
    num_classes: int,
    *,
    hidden: int = 256,
    layers: Mapping[str, Any] = {},
    capacities: Capacities | None = None,
) -> Step:
    """One layer a fanout, on trees, or on compacted frontiers where there are `capacities`.

    `layers` are options of `GraphSAGE`, such as `conv`.
    """
    model = GraphSAGE(hidden, num_classes, num_layers=len(fanouts), **layers)
    optimizer = optax.adam(0.003)

    def start(key: PRNGKey, tables: Tables) -> TrainState:
        blocks = sample_blocks(key, tables.graph, jnp.zeros(1, jnp.int32), fanouts)
        params = model.init(key, tables.features, blocks)
        return init_state(jax.random.fold_in(key, 1), params, optimizer)

    def sample(key, graph, seeds):
        if capacities is None:
            return sample_blocks(key, graph, seeds, fanouts), jnp.bool_(True)
        return sample_compact_blocks(key, graph, seeds, fanouts, capacities)

    def apply(params, tables, blocks) -> Any:
        return model.apply(params, tables.features, blocks)

    def loss_of(params, stats, blocks, batch, key, *, tables):
        nodes, valid = batch
        logits: Any = model.apply(params, tables.features, blocks, rngs={"order": key})
        losses = cross_entropy(logits, tables.labels[nodes], valid)
        return masked_mean(losses, valid), ({"loss": losses.sum(), "weight": jnp.float32(valid.sum())}, stats)

    def epoch(state, tables, seeds, mask):
        given_blocks = partial(loss_of, tables=tables)

        def on_trees(params, stats, batch, key):
            return given_blocks(params, stats, sample(key, tables.graph, batch[0])[0], batch, key)

        loss_fn = on_trees
        if capacities is not None:
            loss_fn = deduplicated_loss(given_blocks, tables.graph, fanouts, capacities)
        return train_epoch(make_update(loss_fn, optimizer), state, (seeds, mask))

    def update(state, tables, blocks, batch):
        def loss_fn(params, stats, batch, key):
            return loss_of(params, stats, blocks, batch, key, tables=tables)

        return make_update(loss_fn, optimizer)(state, batch)

    return Step(start, epoch, sample, apply, update)


def place(dataset: Dataset, dtype: Any = None) -> Tables:
    """The tables on the default device, the features as `dtype` if there is one; a TPU gets whole lanes."""
    if dataset.features is None or dataset.labels is None:
        raise ValueError("the step needs features and labels: make a graph with benchmarks.make_graph")
    graph, labels = jax.device_put((dataset.graph, dataset.labels))
    features = to_device_table(dataset.features)
    return Tables(graph, features if dtype is None else features.astype(dtype), labels)


def num_classes(dataset: Dataset) -> int:
    """The number of classes of a single-label data set."""
    return int(np.max(np.asarray(dataset.labels))) + 1
