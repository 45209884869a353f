"""What `experiments.pod` reads, wherever it lies, and how it comes onto a mesh: tables split by nodes."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.common.config import PLACEMENTS
from experiments.common.datasets import load
from experiments.common.mesh import NodeSplits
from experiments.pod.config import Config
from jsage.data import Dataset, Shards, open_shards
from jsage.data.shards.layout import META
from jsage.graph import Placement, in_degrees
from jsage.nn import l2_normalize
from jsage.parallel import (
    ShardedFeatures,
    ShardedGraph,
    cache_rows,
    open_features,
    open_graph,
    open_nodes,
    shard_features,
    shard_graph,
    symmetric_weights,
)


class Source(NamedTuple):
    """What is trained on, before any of it is on a device."""

    placement: Placement
    edges: tuple[int, ...]
    """Edges of each shard."""
    width: int
    """Numbers in a row of features."""
    dataset: Dataset | None
    """None for a sharded directory, of which each process opens its own shards."""
    path: Path


class Tables(NamedTuple):
    """What the programs read; split over the mesh, but for the labels of the splits, which the host holds."""

    graph: ShardedGraph
    features: ShardedFeatures
    splits: NodeSplits
    labels: jax.Array


def open_source(config: Config, shards: int) -> Source:
    """The sizes of a data set over so many devices; a sharded directory says its own number."""
    path = Path(config.dataset)
    if path.is_dir() and "shards" in (path / META).read_text(encoding="utf-8")[:4096]:
        return _open_shards(open_shards(path))
    if config.dataset == "digits":
        raise ValueError("--dataset digits is trained on a part of its graph: run experiments.classify")
    dataset, graph = load(config)
    if dataset.features is None:
        raise ValueError(f"--dataset {config.dataset} has no features, and experiments.pod needs some")
    placement, degrees = PLACEMENTS[config.placement](graph, shards), np.asarray(in_degrees(graph))
    edges = tuple(int(degrees[placement.globals(shard)].sum()) for shard in range(shards))
    return Source(placement, edges, dataset.features.shape[1], dataset, path)


def _open_shards(shards: Shards) -> Source:
    if shards.features is None or shards.labels is None:
        raise ValueError(
            f"--dataset {shards.path} has no features or no labels, and experiments.pod needs both"
        )
    return Source(shards.placement, shards.edges, shards.features[1][0], None, shards.path)


def place_tables(source: Source, config: Config, mesh: Mesh) -> tuple[ShardedGraph, ShardedFeatures]:
    """The graph and the features on the mesh; a process reads the shards of its own devices alone."""
    if source.dataset is None:
        graph, features = open_graph(source.path, mesh), open_features(source.path, mesh)
        if config.scale == "columns":
            raise ValueError("--scale columns needs the whole table: standardize it before it is sharded")
        if config.scale != "none":
            features = ShardedFeatures(jax.jit(l2_normalize)(features.rows))
    else:
        graph = shard_graph(source.dataset.graph, source.placement, mesh)
        features = shard_features(np.asarray(source.dataset.features), source.placement, mesh)
    if config.aggregator == "gcn":
        graph = symmetric_weights(graph, mesh)
    return graph, cache_rows(graph, features, config.cache, mesh) if config.cache else features


def locate(source: Source, mesh: Mesh) -> NodeSplits:
    """Where the nodes of the splits are, and their labels; in the order of their ids under any placement."""
    if source.dataset is None:
        found = [open_nodes(source.path, name, mesh) for name in ("train", "val", "test")]
        parts = [
            (np.asarray(part.place.owner), np.asarray(part.place.local), np.asarray(part.labels))
            for part in found
        ]
    else:
        splits, labels = source.dataset[3:6], np.asarray(source.dataset.labels)
        ids = [np.sort(np.asarray(nodes)) for nodes in splits]
        parts = [(*source.placement.locate(nodes), labels[nodes]) for nodes in ids]
    owner, local, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    train, val, test = (len(part[0]) for part in parts)
    return NodeSplits(owner, local, labels, (train, val, test))


def make_tables(source: Source, config: Config, mesh: Mesh) -> Tables:
    """Everything on the mesh, labels as they are."""
    graph, features = place_tables(source, config, mesh)
    splits = locate(source, mesh)
    return Tables(graph, features, splits, jnp.asarray(splits.labels))
