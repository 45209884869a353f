"""What experiments on a mesh share: nodes of splits, programs whose tables are split, exact inference."""

import contextlib
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from experiments.common.config import EncoderOptions
from jsage.blocks import Tree
from jsage.data import Dataset
from jsage.graph import Location, from_edges
from jsage.nn import GraphSAGE
from jsage.parallel import (
    Budget,
    ShardedFeatures,
    embed_all,
    fetch,
    on_mesh,
    replicate,
    specs,
    split,
)
from jsage.parallel.infer import EDGES
from jsage.sampling import batches
from jsage.train import TrainState, init_state

SPLIT = PartitionSpec("data")


def virtual(devices: int) -> None:
    """Have a CPU count as so many devices; once jax has counted them it is too late."""
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", devices)


class NodeSplits(NamedTuple):
    """The nodes of the three splits, one split after another, the same on all processes."""

    owner: np.ndarray
    local: np.ndarray
    labels: np.ndarray
    sizes: tuple[int, int, int]

    def as_dataset(self) -> Dataset:
        """Labels and splits as the tasks and the reports read them: nodes are numbered as they are here."""
        bounds = np.cumsum((0, *self.sizes))
        train, val, test = (np.arange(a, b, dtype=np.int32) for a, b in pairwise(bounds))
        none = from_edges([], [], len(self.owner))
        return Dataset(none, None, self.labels, train, val, test)


def variables(model: nn.Module, config: EncoderOptions, width: int, key: jax.Array) -> dict:
    """Parameters and statistics, from rows of `width` numbers."""
    sizes = np.cumprod([1, *(1 + fanout for fanout in config.fanouts)])
    shapes = list(zip(sizes, config.fanouts, strict=False))[::-1]
    data = {"weight": jnp.ones} if config.aggregator == "gcn" else {}
    blocks = [
        Tree(jnp.ones(shape, bool), {name: ones(shape) for name, ones in data.items()}) for shape in shapes
    ]
    return dict(model.init(key, jnp.zeros((sizes[-1], width)), blocks))


def places(tables: Any, nodes: np.ndarray) -> Location:
    """Where nodes of the splits are."""
    return Location(*(jnp.asarray(x[nodes]) for x in (tables.splits.owner, tables.splits.local)))


def padded(seeds: Any, mask: Any, devices: int) -> tuple[np.ndarray, np.ndarray]:
    """Batches whose size is a multiple of the number of devices: invalid seeds at the end of each."""
    room = ((0, 0), (0, -seeds.shape[1] % devices))
    return np.pad(np.asarray(seeds), room, mode="edge"), np.pad(np.asarray(mask), room)


def make_start(init: Callable[[jax.Array], dict], optimizer: optax.GradientTransformation, mesh: Mesh) -> Any:
    """The state that a run starts from, a copy on every device: that of `experiments.common.programs`."""

    def start(key: jax.Array) -> TrainState:
        stats = init(jax.random.fold_in(key, 0))
        return init_state(jax.random.fold_in(key, 1), stats.pop("params"), optimizer, stats)

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


def make_predict(model: GraphSAGE, tables: Any, mesh: Mesh, traces: Counter[str]) -> Any:
    """Exact outputs: every node's layer by layer where it is, then those asked for, on the host."""
    edges = min(EDGES, tables.graph.sources[0].shape[0] // mesh.size)
    budget = Budget(max(1, 2 * edges // mesh.size), edges=edges)

    def embed(variables: Any, graph: Any, rows: jax.Array) -> jax.Array:
        traces["predict"] += 1
        return embed_all(model, variables, graph, ShardedFeatures(rows), budget)

    def pick(rows: jax.Array, seeds: Location) -> jax.Array:
        return fetch(ShardedFeatures(rows), seeds, max(1, 2 * seeds.owner.shape[0] // mesh.size))[0]

    programs: dict[Any, Any] = {}

    def predict(params: Any, stats: Any, tables: Any, nodes: jax.Array) -> jax.Array:
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
