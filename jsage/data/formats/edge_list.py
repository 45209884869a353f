"""Edges from a text table, one a line."""

import csv
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from jsage.graph import Graph, from_edges

_HEADS = ({"src", "source", "from"}, {"dst", "target", "to"})
_COLUMNS = ("weight", "time")


def read_edge_list(
    path: str | Path, *, delimiter: str | None = None, num_nodes: int | None = None
) -> tuple[Graph, np.ndarray]:
    """Read `src, dst[, weight[, time]]` from a CSV or TSV file; gives the graph and the nodes' names.

    A header (`src` or `source`, `dst` or `target`, ...) may name other columns of numbers; they become
    `edge_data`. Node `i` of the graph is called `names[i]` in the file; names are sorted, as numbers if all
    are. With `num_nodes`, names are ids in `0 .. num_nodes - 1` already, kept as they are. `delimiter` is a
    tab if the first line has one, else a comma. Empty lines and lines that start with `#` are skipped. Edges
    are directed.

    Raises FileNotFoundError, and ValueError that names the file and line of a bad row.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pathlib.Path(folder, "edges.csv").write_text("src,dst,weight\\nbob,ann,2\\nann,cy,0.5\\n")
    ...     graph, names = read_edge_list(f"{folder}/edges.csv")
    >>> names.tolist(), graph.indices.tolist(), graph.edge_data["weight"].tolist()
    (['ann', 'bob', 'cy'], [1, 0], [2.0, 0.5])
    """
    path = Path(path)
    try:
        columns, rows = _read(path, delimiter)
        ends, data = _parse(columns, rows)
        names, (src, dst) = _name(ends) if num_nodes is None else (np.arange(num_nodes), _ids(ends, rows))
        return from_edges(src, dst, len(names), **data), names
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read(path: Path, delimiter: str | None) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The extra columns' names, and the rows with their line numbers."""
    with path.open(newline="", encoding="utf-8") as file:
        lines = [(i, line) for i, line in enumerate(file, 1) if line.strip() and not line.startswith("#")]
    if delimiter is None:
        delimiter = "\t" if lines and "\t" in lines[0][1] else ","
    rows = [
        (i, [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter))]) for i, line in lines
    ]
    if rows and all(cell.lower() in head for cell, head in zip(rows[0][1], _HEADS, strict=False)):
        return rows[0][1][2:], rows[1:]
    width = len(rows[0][1]) - 2 if rows else 0
    return [*_COLUMNS[:width], *(f"column{i}" for i in range(5, width + 3))], rows


def _parse(columns: Sequence[str], rows: list) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    for line, row in rows:
        if len(row) != len(columns) + 2 or not (row[0] and row[1]):
            expected = ", ".join(["src", "dst", *columns])
            raise ValueError(
                f"line {line}: expected {len(columns) + 2} columns ({expected}), got {','.join(row)!r}"
            )
    ends = np.array([row[:2] for _, row in rows], str).reshape(-1, 2).T
    return ends, {name: _numbers(name, i, rows) for i, name in enumerate(columns, 2)}


def _numbers(name: str, column: int, rows: list) -> np.ndarray:
    """A column as integers if all are, else as finite floats."""
    cells = [row[column] for _, row in rows]
    try:
        return np.array([int(cell) for cell in cells], np.int64)
    except (ValueError, OverflowError):
        pass
    for line, row in rows:
        try:
            bad = not np.isfinite(float(row[column]))
        except ValueError:
            bad = True
        if bad:
            raise ValueError(f"line {line}: {name} must be a finite number, got {row[column]!r}")
    return np.array([float(cell) for cell in cells], np.float32)


def _ids(ends: np.ndarray, rows: list) -> np.ndarray:
    for line, row in rows:
        for cell in row[:2]:
            if not cell.isdecimal():
                raise ValueError(f"line {line}: with num_nodes, nodes must be ids 0, 1, ..., got {cell!r}")
    return ends.astype(np.int64)


def _name(ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sorted names, and each end's place among them."""
    with suppress(ValueError, OverflowError):
        ends = ends.astype(np.int64)
    names, places = np.unique(ends, return_inverse=True)
    return names, places.reshape(ends.shape)
