"""The compiled programs of `experiments.pod`: an epoch and exact inference, with every table split."""

from collections import Counter
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.common.learners import sage_model
from experiments.common.mesh import make_predict, make_program, make_start, padded, places, variables
from experiments.common.programs import Programs, make_optimizer
from experiments.pod.config import Config
from experiments.pod.tables import Tables
from jsage.losses import labeled, masked_mean
from jsage.nn import BatchNorm, GraphSAGE
from jsage.parallel import fetch, global_loss, measure_capacities, per_device_key, sample_blocks, split
from jsage.recipes.tasks import Task
from jsage.sampling import epoch as shuffle
from jsage.train import TrainState, make_update, train_epoch


def make_model(config: Config, width: int) -> GraphSAGE:
    """The model of `experiments.classify`; its batch norm sees the seeds of all devices."""
    model = sage_model(config, width)
    return (
        model.clone(norm=partial(BatchNorm, axis_name="data", momentum=0.9))
        if config.norm == "batch"
        else model
    )


def measure(tables: Tables, config: Config, mesh: Mesh) -> tuple[int, ...]:
    """Capacities of the exchanges, from batches as training has them."""
    nodes = np.arange(tables.splits.sizes[0], dtype=np.int32)
    seeds, mask = shuffle(jax.random.key(0), nodes, min(config.batch_size, len(nodes)))
    seeds = split(places(tables, padded(seeds, mask, mesh.size)[0]), mesh, dim=1)
    return measure_capacities(jax.random.key(1), tables.graph, tables.features, seeds, config.fanouts, mesh)


def compile_programs(
    task: Task, tables: Tables, capacities: tuple[int, ...], config: Config, mesh: Mesh
) -> Programs:
    """Programs as `experiments.common.runs` runs them; what is split over the mesh is an argument of each."""
    model, traces = make_model(config, task.width), Counter()
    optimizer = make_optimizer(config.weight_decay, config.lr)

    init = partial(variables, model, config, tables.features.rows.shape[1])
    update = partial(make_update, optimizer=optimizer)

    def run(state: TrainState, graph: Any, features: Any, given: Any) -> tuple[TrainState, dict]:
        traces["epoch"] += 1
        loss = partial(loss_of, (model, task, config.fanouts, capacities), (graph, features))
        return train_epoch(update(global_loss(loss)), state, given)

    program = make_program(run, mesh)

    def epoch(
        state: TrainState, tables: Tables, seeds: jax.Array, mask: jax.Array
    ) -> tuple[TrainState, dict]:
        nodes, valid = padded(seeds, mask, mesh.size)
        labels = task.labels[nodes]
        given = split((places(tables, nodes), labels, valid), mesh, dim=1)
        return program(state, tables.graph, tables.features, given)

    predict = make_predict(model, tables, mesh, traces)
    return Programs(make_start(init, optimizer, mesh), cast(Any, epoch), predict, traces)


def loss_of(given: tuple, tables: tuple, params: Any, stats: Any, batch: Any, key: jax.Array) -> Any:
    """The loss of one device's seeds, and its sums: neighbors and rows come from their owners."""
    (model, task, fanouts, capacities), (graph, features) = given, tables
    seeds, labels, mask = batch
    draw, drop, order = jax.random.split(key, 3)
    ids, blocks, hops = sample_blocks(draw, graph, seeds, fanouts, capacities[:-1])
    rows, last = fetch(features, ids, capacities[-1])
    rngs = {"dropout": per_device_key(drop), "order": per_device_key(order)}
    options = {"deterministic": False, "rngs": rngs, "mutable": ["batch_stats"]}
    outputs, stats = model.apply({"params": params, **stats}, rows, blocks, mask=mask, **options)
    valid = labeled(labels, mask) if task.name != "regression" else mask
    losses = task.loss(outputs, labels, valid)
    overflow = last.overflow + sum(hop.overflow for hop in hops)
    sums = {"loss": losses.sum(), "weight": valid.sum().astype(jnp.float32), "overflow": overflow}
    return masked_mean(losses, valid), (sums, stats)
