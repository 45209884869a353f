"""A graph directory cut into shards, of which a host opens those that it needs.

    meta.json                 what there is: `open_shards` reads it alone
    shard-00000/              the nodes of shard 0, row by row in the order of `placement.globals(0)`
        indptr.npy            int32 [count + 1]; every shard has fewer than 2^31 edges
        indices.npy           int32 [edges]: the sources of the edges into row v, in the order they were given
        owners.npy            int32 [edges]: only where placed ids do not fit int32
        features.npy          [count, width]; absent for a graph without features
        labels.npy            [count, ...]; absent for a graph without labels
        train.npy val.npy test.npy   int32 rows of this shard, in the order of the whole split
        edge_NAME.npy         [edges, ...]
        shard.json            which shard of which run this is, and the entries of its files
    shard-00001/ ...

A source is a *placed* id, `owner * rows + local` (`jsage.graph.partition`): one int32 says which shard to
ask, and for which row, by a division by a constant; it takes half the memory of the pair, and with
`contiguous` it is the node's id. Training on placed ids alone needs no other ids on a device. Where
`shards * rows` is above 2^31, `indices` holds the row in the source's shard and `owners` the shard.

`meta.json` has `format`, `version`, `num_nodes`, `num_edges`, `shards`, `rows`, `placement`; `nodes` and
`edges`, one number a shard; `features` and `labels`, the `dtype` and the `shape` of one node's, or null;
`files`: of each its `bytes`, `sha256`, `shape` and `dtype`; and the SHA-256 of all that. It is written last,
and the directory is renamed to its name when all of it is on disk.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Shaped

from jsage._internal.files import checksum
from jsage.data.formats.arrays import check_file, file_sha256, map_array
from jsage.graph import Hashed, Placement, Ranges

FORMAT, VERSION = "jsage sharded graph", 1
META, SHARD = "meta.json", "shard.json"
EDGE = "edge_"


class Shard(NamedTuple):
    """The nodes that one shard owns and the edges into them: read-only memory maps.

    `indices` are placed ids where `owners` is None, else rows in the shards that `owners` says. Splits are
    rows of this shard.

    >>> Shard._fields[:3]
    ('indptr', 'indices', 'owners')
    """

    indptr: Int[np.ndarray, " count+1"]
    indices: Int[np.ndarray, " edges"]
    owners: Int[np.ndarray, " edges"] | None
    edge_data: Mapping[str, np.ndarray]
    features: Shaped[np.ndarray, "count width"] | None
    labels: Shaped[np.ndarray, " count *targets"] | None
    train: Int[np.ndarray, " num_train"]
    val: Int[np.ndarray, " num_val"]
    test: Int[np.ndarray, " num_test"]


class Shards(NamedTuple):
    """What `meta.json` of a sharded graph directory says.

    `nodes[s]` and `edges[s]` are the counts of shard `s`; tables that fit any shard have `placement.rows`
    rows and `max(edges)` edges. `features` and `labels` are the dtype and the shape of one node's.

    >>> Shards._fields[:4]
    ('path', 'placement', 'num_edges', 'nodes')
    """

    path: Path
    placement: Placement
    num_edges: int
    nodes: tuple[int, ...]
    edges: tuple[int, ...]
    features: tuple[str, tuple[int, ...]] | None
    labels: tuple[str, tuple[int, ...]] | None
    files: Mapping[str, dict]


def open_shards(path: str | Path) -> Shards:
    """Read what a sharded graph directory holds; its shards need not be there.

    Raises FileNotFoundError where there is no `meta.json`, ValueError for one that is damaged or of another
    version.

    >>> import tempfile
    >>> from jsage.data import digits, shard_dataset
    >>> from jsage.graph import contiguous
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     shard_dataset(f"{folder}/digits", digits(), contiguous(1797, 4))
    ...     open_shards(f"{folder}/digits").nodes
    (450, 450, 450, 447)
    """
    path = Path(path)
    meta = _read_meta(path / META)
    features, labels = (
        found and (found["dtype"], tuple(found["shape"])) for found in (meta["features"], meta["labels"])
    )
    counts = tuple(meta["nodes"]), tuple(meta["edges"])
    return Shards(path, read_placement(meta), meta["num_edges"], *counts, features, labels, meta["files"])


def open_shard(path: str | Path, shard: int, *, verify: bool = False) -> Shard:
    """Open one shard; every array is a read-only memory map, read from disk as it is used.

    The size, shape and type of each file are held against `meta.json`, and `shard.json`, whole: a shard of
    another run, or in another's place, is refused. `verify` reads all the files and compares their SHA-256.

    Raises FileNotFoundError for a missing file and ValueError for one that is half-written, damaged or of
    another run: both name the file. ValueError too for a shard that there is not.

    >>> import tempfile
    >>> from jsage.data import digits, shard_dataset
    >>> from jsage.graph import contiguous
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     shard_dataset(f"{folder}/digits", digits(), contiguous(1797, 4))
    ...     open_shard(f"{folder}/digits", 3, verify=True).features.shape
    (447, 64)
    """
    shards = open_shards(path)
    if not 0 <= shard < len(shards.nodes):
        raise ValueError(f"{path} has the shards 0 .. {len(shards.nodes) - 1}, got {shard}")
    folder = shard_name(shard)
    files = {name: entry for name, entry in shards.files.items() if name.startswith(f"{folder}/")}
    _check_identity(shards.path / folder / SHARD, files.pop(f"{folder}/{SHARD}"))
    for name, entry in files.items():
        check_file(shards.path / name, entry, verify=verify)
    arrays: dict[str, Any] = {
        name.removeprefix(f"{folder}/").removesuffix(".npy"): map_array(shards.path / name, entry)
        for name, entry in files.items()
    }
    data = {name.removeprefix(EDGE): arrays.pop(name) for name in list(arrays) if name.startswith(EDGE)}
    fields: list[Any] = [data if name == "edge_data" else arrays.get(name) for name in Shard._fields]
    return Shard(*fields)


def verify_shards(path: str | Path) -> None:
    """Read all files of all shards and compare their SHA-256; raises what `open_shard` does.

    >>> import tempfile
    >>> from jsage.data import digits, shard_dataset
    >>> from jsage.graph import contiguous
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     shard_dataset(f"{folder}/digits", digits(), contiguous(1797, 4))
    ...     verify_shards(f"{folder}/digits")
    """
    for shard in range(len(open_shards(path).nodes)):
        open_shard(path, shard, verify=True)


def shard_name(shard: int) -> str:
    """The folder of a shard.

    >>> shard_name(3)
    'shard-00003'
    """
    return f"shard-{shard:05d}"


def describe_placement(placement: Placement) -> dict[str, Any]:
    """What `meta.json` keeps of a placement.

    >>> from jsage.graph import hashed
    >>> describe_placement(hashed(5, 2))["placement"]
    {'kind': 'hashed', 'seed': 0}
    """
    common = {"num_nodes": placement.num_nodes, "shards": placement.shards, "rows": placement.rows}
    if isinstance(placement, Ranges):
        return {**common, "placement": {"kind": "ranges", "bounds": list(placement.bounds)}}
    if isinstance(placement, Hashed):
        return {**common, "placement": {"kind": "hashed", "seed": placement.seed}}
    raise ValueError(f"placement must be contiguous, hashed or balanced, got {type(placement).__name__}")


def read_placement(meta: dict[str, Any]) -> Placement:
    """The placement that `describe_placement` described; ValueError for an unknown kind.

    >>> from jsage.graph import hashed
    >>> read_placement(describe_placement(hashed(5, 2))) == hashed(5, 2)
    True
    """
    sizes, described = (meta["num_nodes"], meta["shards"]), meta["placement"]
    if described["kind"] == "ranges":
        return Ranges(*sizes, tuple(described["bounds"]))
    if described["kind"] == "hashed":
        return Hashed(*sizes, described["seed"])
    raise ValueError(f"placement must be of kind 'ranges' or 'hashed', got {described['kind']!r}")


def _read_meta(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: {path.parent} is no sharded graph directory, or half-written"
        )
    try:
        whole = json.loads(path.read_bytes())
        expected, version = whole.pop("sha256"), (whole["format"], whole["version"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged or no sharded graph directory's: {error!r}") from error
    if version != (FORMAT, VERSION):
        raise ValueError(
            f"{path} is of {version[0]!r}, version {version[1]!r}, but this reads {FORMAT!r}, {VERSION}"
        )
    if checksum(whole) != expected:
        raise ValueError(
            f"{path} is damaged: its SHA-256 is not the one that it names: copy or write it again"
        )
    return whole


def _check_identity(path: Path, entry: dict) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, but {META} lists it: copy the shard, or write it again")
    if (found := file_sha256(path)) != entry["sha256"]:
        raise ValueError(
            f"{path} says that {path.parent} is {_told(path)}: expected SHA-256 {entry['sha256']} ({META}), "
            f"got {found}: put the shard of this directory there, or write it again"
        )


def _told(path: Path) -> str:
    """What a `shard.json` that is not the expected one says of its folder."""
    try:
        shard = json.loads(path.read_bytes())["shard"]
    except (ValueError, KeyError, TypeError):
        return "damaged"
    return "another run's" if path.parent.name == shard_name(shard) else f"shard {shard}"
