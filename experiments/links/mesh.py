"""The programs of `experiments.links` on a mesh: tables split by nodes, pairs over the devices."""

from collections import Counter
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.common.config import PLACEMENTS
from experiments.common.mesh import (
    NodeSplits,
    make_predict,
    make_program,
    make_start,
    padded,
    places,
    variables,
)
from experiments.common.programs import make_optimizer
from experiments.links import learners
from experiments.links.config import Config
from experiments.links.programs import Programs
from jsage.graph import Placement
from jsage.losses import link_cross_entropy, masked_mean
from jsage.parallel import (
    ShardedFeatures,
    ShardedGraph,
    fetch,
    global_loss,
    local_share,
    make_mesh,
    measure_capacities,
    per_device_key,
    replicate,
    sample_blocks,
    shard_features,
    shard_graph,
    without_pairs,
)
from jsage.parallel import split as split_over
from jsage.parallel.mesh import AXIS
from jsage.sampling import LinkBatch, split
from jsage.sampling.negatives import BySide, NegativeSampler
from jsage.train import TrainState, make_update, train_epoch


class Tables(NamedTuple):
    """What the programs read: split over the mesh, but for the pairs, which the host holds."""

    graph: ShardedGraph
    features: ShardedFeatures
    splits: NodeSplits
    """Where every node is, in the order of their ids."""
    sampler: NegativeSampler | BySide
    pairs: np.ndarray


def place_tables(tables: learners.Tables, config: Config) -> tuple[Programs, Tables]:
    """Lay one split's tables on a mesh of `config.devices`, and compile for it."""
    if tables.time is not None or tables.features is None:
        raise ValueError("--devices needs features, and edges without times: leave it out")
    if len(jax.devices()) < config.devices:
        raise ValueError(f"--devices {config.devices}, but jax has {len(jax.devices())}")
    mesh, graph = make_mesh(jax.devices()[: config.devices]), tables.graph
    placement: Any = PLACEMENTS[config.placement](graph, mesh.size)
    owner, local = placement.locate(np.arange(graph.num_nodes))
    laid = Tables(
        shard_graph(graph, placement, mesh),
        shard_features(tables.features, placement, mesh),
        NodeSplits(owner, local, np.zeros(0), (graph.num_nodes, 0, 0)),
        replicate(tables.sampler, mesh),
        np.asarray(tables.pairs),
    )
    return compile_programs(laid, placement, config, mesh), laid


def compile_programs(tables: Any, placement: Placement, config: Config, mesh: Mesh) -> Programs:
    """Programs as `experiments.links.programs` runs them."""
    model, traces = learners.link_model(config), Counter()
    encoder: Any = model.encoder
    optimizer, capacities = make_optimizer(config.weight_decay, config.lr), measure(tables, config, mesh)

    init = partial(variables, model, config, tables.features.rows.shape[1])

    def run(state: TrainState, given: tuple, batches: Any) -> tuple[TrainState, dict]:
        traces["epoch"] += 1
        loss = partial(loss_of, (model, placement, capacities, config), given)
        return train_epoch(make_update(global_loss(loss), optimizer), state, batches)

    program = make_program(run, mesh)

    def epoch(state: Any, tables: Any, rows: jax.Array, mask: jax.Array) -> tuple[TrainState, dict]:
        number, valid = padded(rows, mask, mesh.size)
        batches = split_over((jnp.asarray(tables.pairs[number]), jnp.asarray(valid)), mesh, dim=1)
        return program(state, (tables.graph, tables.features, tables.sampler), batches)

    rows_of = make_predict(encoder, tables, mesh, traces)
    score = jax.jit(partial(model.apply, method="score"))

    def predict(params: Any, tables: Any, pairs: jax.Array, time: jax.Array | None) -> jax.Array:
        rows = rows_of(params["encoder"], {}, tables, pairs.T.ravel())
        return score({"params": params}, *jnp.split(rows, 2))

    begin = make_start(init, optimizer, mesh)
    embed = lambda params, tables: rows_of(params["encoder"], {}, tables, np.arange(len(tables.splits.owner)))  # noqa: E731
    return Programs(begin, epoch, predict, embed, traces)


def measure(tables: Tables, config: Config, mesh: Mesh) -> tuple[int, ...]:
    """Capacities of the exchanges, from random pairs to train on and random nodes beside them."""
    rng, num_nodes = np.random.default_rng(0), len(tables.splits.owner)
    size = min(config.batch_size, len(tables.pairs))
    shape = 8, size + -size % mesh.size
    pairs = tables.pairs[rng.integers(0, len(tables.pairs), shape)]
    nodes = np.concatenate([pairs, rng.integers(0, num_nodes, (*shape, width(config)))], 2).reshape(8, -1)
    seeds = split_over(places(tables, nodes), mesh, dim=1)
    return measure_capacities(jax.random.key(1), tables.graph, tables.features, seeds, config.fanouts, mesh)


def width(config: Config) -> int:
    """Nodes drawn for a pair: the other end of each negative, or both ends."""
    return config.negatives * (2 if config.noise == "pairs" else 1)


def near(sampler: NegativeSampler | BySide, pairs: jax.Array, config: Config) -> NegativeSampler:
    """`learners.near` of all devices' pairs: each negative's end is of the side of the one it stands for."""
    if not isinstance(sampler, BySide):
        return sampler
    ends = (pairs[:, 0], pairs[:, 1]) if config.noise == "pairs" else (pairs[:, 1],)
    like = jnp.concatenate([jnp.repeat(end[:, None], config.negatives, 1) for end in ends], 1)
    return partial(sampler, like=jax.lax.all_gather(like, AXIS, tiled=True))


def loss_of(given: tuple, tables: tuple, params: Any, stats: Any, batch: Any, key: jax.Array) -> Any:
    """The loss of one device's pairs, and its sums."""
    (model, placement, capacities, config), (graph, features, sampler) = given, tables
    pairs, mask = batch
    noise, draw, drop = jax.random.split(key, 3)
    negatives = local_share(noise, near(sampler, pairs, config), (len(pairs), width(config)))
    batch = LinkBatch(pairs[:, 0], pairs[:, 1], negatives, mask)
    left = without_pairs(graph, batch.src, batch.dst, mask, placement)
    seeds = placement.locate(batch.seeds)
    ids, blocks, hops = sample_blocks(draw, left, seeds, config.fanouts, capacities[:-1])
    rows, last = fetch(features, ids, capacities[-1])
    options = {"method": "embed", "deterministic": False, "rngs": {"dropout": per_device_key(drop)}}
    one, other, far = split(model.apply({"params": params}, rows, blocks, **options), batch)
    score = partial(model.apply, {"params": params}, method="score")
    ends = jnp.split(far, 2, axis=1) if config.noise == "pairs" else (one, far)
    losses = link_cross_entropy(score(one, other), score(*ends), mask)
    overflow = last.overflow + sum(hop.overflow for hop in hops)
    sums = {"loss": losses.sum(), "weight": mask.sum().astype(jnp.float32), "overflow": overflow}
    return masked_mean(losses, mask), (sums, stats)
