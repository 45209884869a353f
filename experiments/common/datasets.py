"""The data sets by their names, and what programs read of them, on the device."""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.config import CONVOLUTIONS, Config, LabelOptions, LearnerOptions
from experiments.common.learners import Tables, by_weight
from jsage import data
from jsage.blocks import Block, sliced_full_block
from jsage.data import Dataset
from jsage.graph import Graph, edges, in_degrees, induced_subgraph
from jsage.graph.sparse import is_sparse, rows_at
from jsage.nn.attention import AttentionConv
from jsage.recipes.scaling import Scaling, fit_scaling
from jsage.recipes.tasks import Task, other_task
from jsage.sampling import full_block
from jsage.typing import HostArray

MESSAGES = 200_000_000
"""Numbers (edges or slots x width) that inference may hold at once: 0.8 GB."""


def load(config: LabelOptions) -> tuple[Dataset, Graph]:
    """The data set, features scaled, and the graph to train on."""
    dataset, graph, _ = prepare(read(config), config)
    return dataset, graph


def read(config: LabelOptions) -> Dataset:
    """The data set as it is, checked."""
    path = Path(config.dataset)
    if config.dataset == "digits":
        dataset = data.digits()
    elif config.dataset == "communities":
        dataset = data.power_law_communities(200_000, 4_000_000)
    elif path.is_dir():
        dataset = data.open(path)
    elif path.is_file():
        dataset = data.load_npz(path, labels=config.labels, sparse=keeps_sparse(config))
    else:
        raise FileNotFoundError(
            f"--dataset {config.dataset}: expected digits, communities, an .npz file or a graph directory"
        )
    data.validate_dataset(dataset)  # before jax would round what it does not keep
    return dataset


def read_names(config: LabelOptions) -> HostArray | None:
    """The names of its nodes, where it has them."""
    return None if config.dataset in ("digits", "communities") else data.read_names(config.dataset)


def keeps_sparse(config: LabelOptions) -> bool | None:
    """What `load_npz` is told: of `--features auto`, to go by the file if the first layer reads it."""
    if not isinstance(config, Config) or config.features == "dense":
        return False
    fits = config.aggregator not in ("max", "lstm") if config.conv == "sage" else config.conv != "gine"
    return True if config.features == "sparse" else None if fits else False


def prepare(dataset: Dataset, config: LabelOptions) -> tuple[Dataset, Graph, Scaling | None]:
    """The data set, features scaled; the graph to train on; what scales features, where there are some."""
    dataset, scaling = scaled(jax.device_put(dataset), config.scale, dataset.train)
    labels = np.asarray(dataset.labels)
    if not config.task and (other := other_task(labels)):
        kind = "several classes a node" if labels.dtype == bool else "real values"
        print(f"labels are taken as {kind}: pass --task {other} if they are not", file=sys.stderr)
    graph = data.inductive(dataset) if config.dataset == "digits" else dataset.graph
    return dataset, graph, scaling


def scaled(dataset: Dataset, kind: str, nodes: HostArray | None = None) -> tuple[Dataset, Scaling | None]:
    """The data set with its features scaled, columns by these nodes, and how; a line says why."""
    if dataset.features is None:
        return dataset, None
    scaling = fit_scaling(dataset.features, nodes, kind)
    if kind == "auto":
        done = {"rows": "each row scaled to length 1", "columns": "each column standardized"}[scaling.kind]
        print(f"features: {done} ({scaling.why}); --scale says otherwise")
    if is_sparse(dataset.features):
        share = f"{dataset.features.density:.1%} of {dataset.features.shape[1]} columns"
        print(f"features stay sparse ({share} are not 0); --features dense says otherwise")
    return dataset._replace(features=jax.tree.map(jnp.asarray, scaling(dataset.features))), scaling


def kept(scaling: Scaling | None) -> dict:
    """What run.json and an artefact say of it."""
    return {} if scaling is None else {"scaling": scaling.to_json()}


def make_tables(graph: Graph, dataset: Dataset, task: Task, config: Config) -> Tables:
    """What the programs read, on the device."""
    given: Any = dataset.features
    features = jax.tree.map(jnp.asarray, given)
    width = config.identity if features is None else 1 if is_sparse(features) else features.shape[1]
    full = whole(graph, max(width, config.hidden), config)
    drawn = by_weight(graph) if config.draw == "weighted" else None
    return Tables(graph, features, jnp.asarray(task.labels), full, drawn)


def around(nodes: np.ndarray, tables: Tables, config: LearnerOptions) -> tuple[Tables, jax.Array]:
    """The tables cut to what the outputs of `nodes` depend on, and the nodes' ids there.

    A graph without features stays whole, as its embeddings go by node id; so does one that is mostly read.
    """
    graph, features, labels, *_ = tables
    src, dst = map(np.asarray, edges(graph))
    read = np.zeros(graph.num_nodes, bool)
    read[nodes] = True
    for _ in range(config.layers):
        read[src[read[dst]]] = True
    ids = np.flatnonzero(read)
    if features is None or 2 * len(ids) > graph.num_nodes:
        return tables, jnp.asarray(nodes)
    cut = induced_subgraph(graph, ids)
    width = config.hidden if is_sparse(features) else max(features.shape[1], config.hidden)
    place = jnp.asarray(np.searchsorted(ids, nodes).astype(np.int32))
    return Tables(cut, rows_at(features, ids), labels[ids], whole(cut, width, config)), place


def whole(graph: Graph, width: int, config: LearnerOptions) -> Block | None:
    """The graph as one block, for exact inference and for `--full-batch`.

    An edge list compiles fastest; a graph with many messages goes in degree classes, which hold none, but
    for training with attention, whose dropout has a number an edge. The LSTM reads slots: None where their
    table is too large.
    """
    if config.aggregator == "lstm":
        slots = graph.num_nodes * int(in_degrees(graph).max(initial=0))
        return full_block(graph, slots=True) if slots * width <= MESSAGES or config.full_batch else None
    listed = config.full_batch and issubclass(CONVOLUTIONS[config.conv], AttentionConv)
    listed = listed or graph.num_edges * width <= MESSAGES
    return full_block(graph) if listed else sliced_full_block(graph)
