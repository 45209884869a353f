"""A data set in memory, or a graph directory, cut into shards."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jsage._internal.arrays import run_positions
from jsage._internal.files import new_directory
from jsage.data.dataset import Dataset
from jsage.data.formats.directory import open as open_directory
from jsage.data.shards.layout import EDGE, describe_placement
from jsage.data.shards.writer import (
    ShardWriter,
    Tables,
    checked_tables,
    indices_writer,
    locate_splits,
    write_meta,
    write_tables,
)
from jsage.graph import Graph, Placement, validate

_EDGES = 2**22
"""Edges that are read at a time."""


def shard_dataset(path: str | Path, dataset: Dataset | str | Path, placement: Placement) -> None:
    """Cut a data set, or a graph directory, into the shards of a placement (format: `jsage.data.shards`).

    The directory appears whole, under its name, or not at all. Edge lists that do not fit memory:
    `shard_edges`, which writes the same bytes. Raises FileExistsError if `path` exists, BlockingIOError while
    another process writes it, ValueError for a placement of another number of nodes, for values that
    `jsage.graph.validate` refuses, and for a shard that
    would have 2^31 edges or more.

    >>> import tempfile
    >>> from jsage.data import digits, open_shard
    >>> from jsage.graph import hashed
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     shard_dataset(f"{folder}/digits", digits(), hashed(1797, 4))
    ...     open_shard(f"{folder}/digits", 3).labels.shape
    (449,)
    """
    dataset = dataset if isinstance(dataset, Dataset) else open_directory(dataset)
    tables = Tables(dataset.features, dataset.labels, dataset.train, dataset.val, dataset.test)
    tables = checked_tables(tables, dataset.graph.num_nodes)
    if placement.num_nodes != dataset.graph.num_nodes:
        raise ValueError(
            f"the placement is of {placement.num_nodes} nodes, but the graph has {dataset.graph.num_nodes}"
        )
    validate(dataset.graph)
    splits = locate_splits(tables, placement)
    with new_directory(Path(path)) as part:
        for shard in range(placement.shards):
            with ShardWriter(part, shard) as writer:
                _write_edges(writer, dataset.graph, placement)
                for _ in write_tables(writer, tables, splits, placement):
                    pass
                writer.finish(describe_placement(placement))
        write_meta(part, placement)


def _write_edges(writer: ShardWriter, graph: Graph, placement: Placement) -> None:
    """The rows of the nodes that a shard owns, in the order of its rows."""
    indptr, indices = np.asarray(graph.indptr), np.asarray(graph.indices)
    nodes = placement.globals(writer.shard)
    start = indptr[nodes].astype(np.int64)
    degree = indptr[nodes + 1] - start
    total = np.concatenate([[0], np.cumsum(degree)])
    append = indices_writer(writer, int(total[-1]), placement)
    writer.array("indptr", total.shape, np.int32).append(total)
    data = {
        writer.array(f"{EDGE}{name}", (int(total[-1]), *values.shape[1:]), values.dtype): np.asarray(values)
        for name, values in graph.edge_data.items()
    }
    for first, last in _parts(total):
        slot = run_positions(start[first:last], degree[first:last])
        append(indices[slot])
        for array, values in data.items():
            array.append(values[slot])


def _parts(total: np.ndarray) -> Iterator[tuple[int, int]]:
    """Rows with at most `_EDGES` edges together, or one row with more."""
    first, size = 0, len(total) - 1
    while first < size:
        last = int(np.searchsorted(total, total[first] + _EDGES, side="right")) - 1
        yield first, max(last, first + 1)
        first = max(last, first + 1)
