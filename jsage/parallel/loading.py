"""A sharded graph directory on a mesh: device `i` gets shard `i`, and a process opens its own devices' alone.

The same call serves one process and many (`jax.distributed.initialize`).
"""

from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, Shaped

from jsage._internal.arrays import pad_rows
from jsage.data import Shards, lanes_of, open_shard, open_shards, whole_lanes
from jsage.data.shards.layout import shard_name
from jsage.graph import Location
from jsage.parallel.features import ShardedFeatures, check_shards
from jsage.parallel.graph import ShardedGraph, pad_shard, to_global_ids
from jsage.parallel.mesh import assemble, replicate


class Nodes(NamedTuple):
    """Some nodes in the order of their ids, the same on all devices and whatever the placement."""

    ids: Int[np.ndarray, " num_nodes"]
    place: Location
    """`[num_nodes]`, a copy on each device."""
    labels: Shaped[Array, "num_nodes ..."] | None
    """As `place`; None where the directory has none."""


def open_graph(path: str | Path, mesh: Mesh) -> ShardedGraph:
    """The graph of a sharded directory, each shard on its device: as `shard_graph`, of shards alone.

    Raises ValueError for another number of shards than devices, and what `open_shard` raises.

    >>> import jax, tempfile
    >>> from jsage.data import digits, shard_dataset
    >>> from jsage.parallel import make_mesh
    >>> from jsage.graph import hashed
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     shard_dataset(f"{folder}/digits", digits(), hashed(1797, 1))
    ...     open_graph(f"{folder}/digits", make_mesh(jax.devices()[:1])).indptr.shape
    (1798,)
    """
    shards = _checked(path, mesh)

    def part(index: int) -> ShardedGraph:
        shard = open_shard(path, index)
        words = (shard.indices,) if shard.owners is None else (shard.indices, shard.owners)
        names = to_global_ids(shards.placement.globals(index), shards.placement.num_nodes)
        return pad_shard(
            ShardedGraph(*cast(Any, (shard.indptr, words, names, shard.edge_data))),
            shards.placement.rows,
            max(shards.edges),
        )

    return assemble(part, mesh)


def open_features(path: str | Path, mesh: Mesh, *, lanes: int | None = None) -> ShardedFeatures:
    """The features of a sharded directory, each shard's rows on its device: as `shard_features`.

    Raises ValueError for a directory without features or of another number of shards than devices, and what
    `open_shard` raises.

    >>> import jax, tempfile
    >>> from jsage.data import digits, shard_dataset
    >>> from jsage.parallel import make_mesh
    >>> from jsage.graph import hashed
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     shard_dataset(f"{folder}/digits", digits(), hashed(1797, 1))
    ...     open_features(f"{folder}/digits", make_mesh(jax.devices()[:1])).rows.shape
    (1797, 64)
    """
    shards = _checked(path, mesh)
    if shards.features is None:
        raise ValueError(f"{path} has no features: shard a data set that has, or learn embeddings")
    if lanes is None:
        lanes = lanes_of(mesh.devices.flat[0])
    (width,) = shards.features[1]
    rows, missing = shards.placement.rows, whole_lanes(width, lanes) - width

    def part(index: int) -> np.ndarray:
        table: Any = open_shard(path, index).features
        return np.pad(table, ((0, rows - len(table)), (0, missing)))

    return ShardedFeatures(assemble(part, mesh))


def open_nodes(path: str | Path, split: str, mesh: Mesh) -> Nodes:
    """The nodes of a split (`"train"`, `"val"`, `"test"`) of a sharded directory, and their labels.

    Each shard tells its own, and all devices hear of all. Raises as `open_graph`, and ValueError for another
    split.

    >>> import jax, tempfile
    >>> from jsage.data import digits, shard_dataset
    >>> from jsage.parallel import make_mesh
    >>> from jsage.graph import hashed
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     shard_dataset(f"{folder}/digits", digits(), hashed(1797, 1))
    ...     nodes = open_nodes(f"{folder}/digits", "train", make_mesh(jax.devices()[:1]))
    >>> nodes.ids[:3], nodes.labels.shape
    (array([ 0, 13, 34]), (100,))
    """
    shards = _checked(path, mesh)
    if split not in ("train", "val", "test"):
        raise ValueError(f"a split is train, val or test, got {split!r}")
    counts = [shards.files[f"{shard_name(i)}/{split}.npy"]["shape"][0] for i in range(mesh.size)]
    most = max(*counts, 1)

    def part(index: int) -> dict[str, np.ndarray]:
        shard = open_shard(path, index)
        rows = getattr(shard, split)
        told = {"local": rows} if shard.labels is None else {"local": rows, "labels": shard.labels[rows]}
        return {name: pad_rows(np.asarray(values), max(most, 1)) for name, values in told.items()}

    valid = np.arange(most) < np.array(counts)[:, None]
    everywhere = replicate(assemble(part, mesh), mesh)
    told = {name: np.asarray(x)[valid.ravel()] for name, x in everywhere.items()}
    owner = np.repeat(np.arange(mesh.size, dtype=np.int32), counts)
    ids = np.asarray(shards.placement.nodes(owner, told["local"]))
    order = np.argsort(ids)
    labels = replicate(told["labels"][order], mesh) if "labels" in told else None
    place = replicate(Location(*cast(Any, (owner[order], told["local"][order]))), mesh)
    return Nodes(ids[order], place, cast(Any, labels))


def _checked(path: str | Path, mesh: Mesh) -> Shards:
    shards = open_shards(path)
    check_shards(shards.placement, mesh)
    return shards
