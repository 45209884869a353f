"""The compiled programs of `experiments.pod`: an epoch and exact inference, with every table split."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from experiments.fit import Programs, make_optimizer
from experiments.learners import sage_model
from experiments.pod_tables import Tables
from experiments.tasks import Task
from jsage.blocks import Tree
from jsage.losses import labelled, masked_mean
from jsage.nn import BatchNorm, GraphSAGE
from jsage.parallel import (
    Budget,
    Place,
    ShardedFeatures,
    across,
    embed_all,
    fetch,
    measure_capacities,
    on_mesh,
    own_key,
    replicate,
    sample_blocks,
    specs,
    split,
)
from jsage.parallel.infer import EDGES
from jsage.sampling import batches
from jsage.sampling import epoch as shuffle
from jsage.train import TrainState, init_state, make_update, train_epoch

if TYPE_CHECKING:
    from experiments.pod import Config

SPLIT = PartitionSpec("data")


def make_model(config: "Config", width: int) -> GraphSAGE:
    """The model of `experiments.classify`; its batch norm sees the seeds of all devices."""
    model = sage_model(config.common, width)
    return (
        model.clone(norm=partial(BatchNorm, axis_name="data", momentum=0.9))
        if config.norm == "batch"
        else model
    )


def variables(model: nn.Module, config: Any, width: int, key: jax.Array) -> dict:
    """Parameters and statistics, from rows of `width` numbers."""
    sizes = np.cumprod([1, *(1 + fanout for fanout in config.fanouts)])
    shapes = list(zip(sizes, config.fanouts, strict=False))[::-1]
    data = {"weight": jnp.ones} if config.aggregator == "gcn" else {}
    blocks = [
        Tree(jnp.ones(shape, bool), {name: ones(shape) for name, ones in data.items()}) for shape in shapes
    ]
    return dict(model.init(key, jnp.zeros((sizes[-1], width)), blocks))


def places(tables: Any, nodes: np.ndarray) -> Place:
    """Where nodes of the splits are."""
    return Place(*(jnp.asarray(x[nodes]) for x in (tables.splits.owner, tables.splits.local)))


def padded(seeds: Any, mask: Any, devices: int) -> tuple[np.ndarray, np.ndarray]:
    """Batches whose size is a multiple of the number of devices: dead seeds at the end of each."""
    room = ((0, 0), (0, -seeds.shape[1] % devices))
    return np.pad(np.asarray(seeds), room, mode="edge"), np.pad(np.asarray(mask), room)


def measure(tables: Tables, config: "Config", mesh: Mesh) -> tuple[int, ...]:
    """Capacities of the exchanges, from batches as training has them."""
    nodes = np.arange(tables.splits.sizes[0], dtype=np.int32)
    seeds, mask = shuffle(jax.random.key(0), nodes, min(config.batch_size, len(nodes)))
    seeds = split(places(tables, padded(seeds, mask, mesh.size)[0]), mesh, dim=1)
    return measure_capacities(jax.random.key(1), tables.graph, tables.features, seeds, config.fanouts, mesh)


def compile_programs(
    task: Task, tables: Tables, capacities: tuple[int, ...], config: "Config", mesh: Mesh
) -> Programs:
    """Programs as `experiments.fit` runs them; what is split over the mesh is an argument of each."""
    model, traces = make_model(config, task.width), Counter()
    optimizer = make_optimizer(config.weight_decay, config.lr)

    init = partial(variables, model, config, tables.features.rows.shape[1])
    update = partial(make_update, optimizer=optimizer)

    def run(state: TrainState, graph: Any, features: Any, given: Any) -> tuple[TrainState, dict]:
        traces["epoch"] += 1
        loss = partial(loss_of, (model, task, config.fanouts, capacities), (graph, features))
        return train_epoch(update(across(loss)), state, given)

    program = make_program(run, mesh)

    def epoch(
        state: TrainState, tables: Tables, seeds: jax.Array, mask: jax.Array
    ) -> tuple[TrainState, dict]:
        nodes, live = padded(seeds, mask, mesh.size)
        labels = task.labels[nodes]
        given = split((places(tables, nodes), labels, live), mesh, dim=1)
        return program(state, tables.graph, tables.features, given)

    predict = make_predict(model, tables, mesh, traces)
    return Programs(make_start(init, optimizer, mesh), cast(Any, epoch), predict, traces)


def make_start(init: Callable[[jax.Array], dict], optimizer: optax.GradientTransformation, mesh: Mesh) -> Any:
    """The state that a run starts from, a copy on every device: `experiments.fit.make_start` on a mesh."""

    def start(key: jax.Array) -> TrainState:
        stats = init(jax.random.fold_in(key, 0))
        words = jax.random.key_data(jax.random.fold_in(key, 1)).ravel()[:2]
        draws = jax.random.wrap_key_data(words, impl="threefry2x32")  # XLA compiles no Philox in shard_map
        return init_state(draws, stats.pop("params"), optimizer, stats)

    return lambda key, tables: replicate(jax.jit(start)(key), mesh)


def make_program(run: Callable, mesh: Mesh) -> Callable:
    """`run(state, *given) -> (state, sums)` on the mesh; its first call says where everything lies."""
    programs: dict[str, Any] = {}

    def program(state: TrainState, *given: Any) -> tuple[TrainState, dict]:
        if not programs:
            whole = on_mesh(run, mesh, (state, *given), (specs(state), PartitionSpec()))
            programs["epoch"] = jax.jit(whole, donate_argnums=0)
        return programs["epoch"](state, *given)

    return program


def loss_of(given: tuple, tables: tuple, params: Any, stats: Any, batch: Any, key: jax.Array) -> Any:
    """The loss of one device's seeds, and its sums: neighbours and rows come from their owners."""
    (model, task, fanouts, capacities), (graph, features) = given, tables
    seeds, labels, mask = batch
    draw, drop, order = jax.random.split(key, 3)
    ids, blocks, hops = sample_blocks(draw, graph, seeds, fanouts, capacities[:-1])
    rows, last = fetch(features, ids, capacities[-1])
    rngs = {"dropout": own_key(drop), "order": own_key(order)}
    options = {"deterministic": False, "rngs": rngs, "mutable": ["batch_stats"]}
    outputs, stats = model.apply({"params": params, **stats}, rows, blocks, mask=mask, **options)
    live = labelled(labels, mask) if task.name != "regression" else mask
    losses = task.loss(outputs, labels, live)
    overflow = last.overflow + sum(hop.overflow for hop in hops)
    sums = {"loss": losses.sum(), "weight": live.sum().astype(jnp.float32), "overflow": overflow}
    return masked_mean(losses, live), (sums, stats)


def make_predict(model: GraphSAGE, tables: Tables, mesh: Mesh, traces: Counter[str]) -> Any:
    """Exact outputs: every node's layer by layer where it is, then those asked for, on the host."""
    edges = min(EDGES, tables.graph.sources[0].shape[0] // mesh.size)
    budget = Budget(max(1, 2 * edges // mesh.size), edges=edges)

    def embed(variables: Any, graph: Any, rows: jax.Array) -> jax.Array:
        traces["predict"] += 1
        return embed_all(model, variables, graph, ShardedFeatures(rows), budget)

    def pick(rows: jax.Array, seeds: Place) -> jax.Array:
        return fetch(ShardedFeatures(rows), seeds, max(1, 2 * seeds.owner.shape[0] // mesh.size))[0]

    programs: dict[Any, Any] = {}

    def predict(params: Any, stats: Any, tables: Tables, nodes: jax.Array) -> jax.Array:
        given = {"params": params, **stats}, tables.graph, tables.features.rows
        seeds, _ = padded(*batches(nodes, len(nodes)), mesh.size)
        wanted = split(places(tables, seeds[0]), mesh)
        if not programs:
            programs["embed"] = jax.jit(on_mesh(embed, mesh, given, SPLIT))
        rows = programs["embed"](*given)
        if len(nodes) not in programs:
            programs[len(nodes)] = jax.jit(on_mesh(pick, mesh, (rows, wanted), SPLIT))
        return jnp.asarray(np.asarray(replicate(programs[len(nodes)](rows, wanted), mesh))[: len(nodes)])

    return predict
