"""The training step that is measured: sampled blocks, mean GraphSAGE, cross-entropy, Adam. One place for all.

tables = place(data.open(folder))
step = make_step((25, 10), num_classes)
state = jax.jit(step.start)(jax.random.key(0, impl="philox4x32"), tables)
epoch = jax.jit(step.epoch, donate_argnums=0)
state, metrics = epoch(state, tables, *jsage.epoch(key, train, 1024))
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from jsage import aggregate
from jsage.data import Dataset
from jsage.draw import without_replacement
from jsage.graph import Graph
from jsage.loss import cross_entropy, masked_mean
from jsage.nn import GraphSAGE, SAGEConv
from jsage.place import place_features
from jsage.sample import sample_blocks
from jsage.train import TrainState, init_state, make_update, train_epoch
from jsage.typing import AggregateFn, DrawFn, PRNGKey


class Tables(NamedTuple):
    """What a step reads; always an argument, never closed over."""

    graph: Graph
    features: Array
    labels: Array


class Step(NamedTuple):
    """Neither function is jitted."""

    start: Callable[[PRNGKey, Tables], TrainState]
    epoch: Callable[[TrainState, Tables, Array, Array], tuple[TrainState, dict[str, Array]]]
    """`(state, tables, seeds[steps, batch], mask[steps, batch]) -> (state, sums)`: a scan of steps."""


def make_step(
    fanouts: Sequence[int],
    num_classes: int,
    *,
    hidden: int = 256,
    aggregate: AggregateFn = aggregate.mean,
    draw: DrawFn = without_replacement,
    dtype: Any = None,
) -> Step:
    """One layer a fanout; `dtype` is that of the computation, parameters and sums are float32."""
    conv = partial(SAGEConv, aggregate=aggregate, dtype=dtype)
    model = GraphSAGE(hidden, num_classes, num_layers=len(fanouts), conv=conv)
    optimizer = optax.adam(0.003)

    def start(key: PRNGKey, tables: Tables) -> TrainState:
        blocks = sample_blocks(key, tables.graph, jnp.zeros(1, jnp.int32), fanouts, draw=draw)
        params = model.init(key, tables.features, blocks)
        return init_state(jax.random.fold_in(key, 1), params, optimizer)

    def epoch(state, tables, seeds, mask):
        def loss_fn(params, stats, batch, key):
            nodes, live = batch
            blocks = sample_blocks(key, tables.graph, nodes, fanouts, draw=draw)
            logits: Any = model.apply(params, tables.features, blocks, rngs={"order": key})
            losses = cross_entropy(logits, tables.labels[nodes], live)
            sums = {"loss": losses.sum(), "weight": live.sum().astype(jnp.float32)}
            return masked_mean(losses, live), (sums, stats)

        return train_epoch(make_update(loss_fn, optimizer), state, (seeds, mask))

    return Step(start, epoch)


def place(dataset: Dataset) -> Tables:
    """The tables on the default device; a TPU gets features in whole lanes."""
    if dataset.features is None or dataset.labels is None:
        raise ValueError("the step needs features and labels: make a graph with benchmarks.make_graph")
    graph, labels = jax.device_put((dataset.graph, dataset.labels))
    return Tables(graph, place_features(dataset.features), labels)


def num_classes(dataset: Dataset) -> int:
    """The number of classes of a single-label data set."""
    return int(np.max(np.asarray(dataset.labels))) + 1
