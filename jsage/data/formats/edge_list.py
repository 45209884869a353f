"""Edges from a text table, one a line."""

import csv
import io
import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

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
    are directed. It needs pyarrow.

    Raises FileNotFoundError, ImportError where pyarrow is missing, and ValueError that names the file and
    line of a bad row.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pathlib.Path(folder, "edges.csv").write_text("src,dst,weight\\nbob,ann,2\\nann,cy,0.5\\n")
    ...     graph, names = read_edge_list(f"{folder}/edges.csv")
    >>> names.tolist(), graph.indices.tolist(), graph.edge_data["weight"].tolist()
    (['ann', 'bob', 'cy'], [1, 0], [2.0, 0.5])
    """
    content = Path(path).read_bytes()
    try:
        table = _read(content, delimiter)
        data = {name: _numbers(table, i) for i, name in enumerate(table.names[2:], 2)}
        ends = (
            (np.arange(num_nodes), _ids(table))
            if num_nodes is not None
            else _name(np.stack(table.columns[:2]))
        )
        names, (src, dst) = ends
        return from_edges(src, dst, len(names), **data), names
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


class _Table(NamedTuple):
    """Columns of cells; and the text, in which an error counts lines."""

    names: list[str]
    columns: list[np.ndarray]
    text: bytes
    head: bool

    def bad(self, row: int, message: str) -> ValueError:
        lines = [i for i, line in enumerate(self.text.split(b"\n"), 1) if line.strip()]
        return ValueError(f"line {lines[row + self.head]}: {message}")

    def ragged(self, row: int, got: str) -> ValueError:
        return self.bad(row, f"expected {len(self.names)} columns ({', '.join(self.names)}), got {got!r}")


def _read(content: bytes, delimiter: str | None) -> _Table:
    text = re.sub(rb"(?m)^(#.*|[ \t\r]+)$", b"", content)
    found = re.search(rb".+", text)
    first = found[0].decode("utf-8-sig").rstrip("\r") if found else ""
    if delimiter is None:
        delimiter = "\t" if "\t" in first else ","
    cells = [cell.strip() for cell in next(csv.reader([first], delimiter=delimiter), [])]
    head = all(cell.lower() in names for cell, names in zip(cells, _HEADS, strict=False)) and bool(cells)
    extra = cells if head else [*cells[:2], *_COLUMNS, *(f"column{i}" for i in range(5, len(cells) + 1))]
    table = _Table(["src", "dst", *extra[2 : len(cells)]], [], text, head)
    return table._replace(columns=_columns(table, delimiter) if found else [np.empty(0, object)] * 2)


def _columns(table: _Table, delimiter: str) -> list[np.ndarray]:
    """The cells of every column, spaces around them taken off; ValueError for rows of another length."""
    try:
        from pyarrow import ArrowInvalid, compute, csv, string
    except ImportError as error:
        raise ImportError("read_edge_list needs pyarrow: pip install 'jsage[parquet]'") from error
    names, wrong = [str(i) for i in range(len(table.names))], []
    try:
        read = csv.read_csv(
            io.BytesIO(table.text),
            csv.ReadOptions(column_names=names, use_threads=False),
            csv.ParseOptions(
                delimiter=delimiter, invalid_row_handler=lambda row: wrong.append(row) or "error"
            ),
            csv.ConvertOptions(column_types=dict.fromkeys(names, string())),
        )
    except ArrowInvalid as error:
        if wrong:
            raise table.ragged(wrong[0].number - 1 - table.head, wrong[0].text) from error
        raise
    columns = [
        compute.call_function("utf8_trim_whitespace", [read[name]]).to_numpy()[int(table.head) :]
        for name in names
    ]
    empty = np.flatnonzero((columns[0] == "") | (columns[1] == ""))
    for row in empty[:1].tolist():
        raise table.ragged(row, ",".join(column[row] for column in columns))
    return columns


def _numbers(table: _Table, column: int) -> np.ndarray:
    """A column as integers if all are, else as finite floats."""
    name, cells = table.names[column], table.columns[column]
    with suppress(ValueError, OverflowError):
        return cells.astype(np.int64)
    for row, cell in enumerate(cells):
        try:
            bad = not np.isfinite(float(cell))
        except ValueError:
            bad = True
        if bad:
            raise table.bad(row, f"{name} must be a finite number, got {cell!r}")
    return cells.astype(np.float32)


def _ids(table: _Table) -> np.ndarray:
    for row, cells in enumerate(zip(*table.columns[:2], strict=True)):
        for cell in cells:
            if not cell.isdecimal():
                raise table.bad(row, f"with num_nodes, nodes must be ids 0, 1, ..., got {cell!r}")
    return np.stack(table.columns[:2]).astype(np.int64)


def _name(ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sorted names, and each end's place among them."""
    with suppress(ValueError, OverflowError):
        names, places = np.unique(ends.astype(np.int64), return_inverse=True)
        return names, places.reshape(ends.shape)
    names = sorted(set(ends.ravel()))
    place = {name: i for i, name in enumerate(names)}
    return np.array(names, str), np.array([[place[name] for name in side] for side in ends])
