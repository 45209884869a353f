"""Edges from a text table, one a line."""

import codecs
import csv
import gzip
import io
import math
import re
import zlib
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jsage._internal.checks import check_edge_names
from jsage.graph import Graph, from_edges

_SRC, _DST = {"src", "source", "from"}, {"dst", "target", "to"}
_COLUMNS = ("weight", "time")


def read_edge_list(
    path: str | Path,
    *,
    delimiter: str | None = None,
    num_nodes: int | None = None,
    header: bool | None = None,
) -> tuple[Graph, np.ndarray]:
    """Read `src, dst[, weight[, time]]` from a text file; gives the graph and the nodes' names.

    Node `i` of the graph is called `names[i]` in the file; names are sorted, as numbers if all are (`007` is
    text). With `num_nodes`, names are ids in `0 .. num_nodes - 1` already, kept as they are. Edges are
    directed; further columns are numbers and become `edge_data`. A file ending in `.gz` may be one of gzip.
    Empty lines and those that start with `#` or `%` are skipped. It needs pyarrow.

    `delimiter` is what the first line has: a tab, a comma, a semicolon, or blanks (`" "`: any number of
    them). The first line is a header (`header`) if it has `src` (`source`, `from`) and `dst` (`target`,
    `to`), in any order and place; or if its cells are text and all others of a column are numbers. Over text
    alone, say `header=True` for one in other words.

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
        table = _read(_text(content), delimiter, header)
        check_edge_names(table.names[2:])
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
    head: bool = False

    def bad(self, row: int, message: str) -> ValueError:
        lines = re.split(rb"\r\n|\r|\n", self.text)
        numbers = [i for i, line in enumerate(lines, 1) if line.strip(b" \t")]
        return ValueError(f"line {numbers[row + self.head]}: {message}")

    def ragged(self, row: int, got: str) -> ValueError:
        return self.bad(row, f"expected {len(self.names)} columns ({', '.join(self.names)}), got {got}")


def _text(content: bytes) -> bytes:
    """The lines as they are numbered, without comments and a byte-order mark."""
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"a damaged or half-written file of gzip: {error}") from error
    if content.startswith(b"%%MatrixMarket"):
        raise ValueError("a matrix of Matrix Market, no edge list: read it by scipy.io.mmread")
    content = content.removeprefix(codecs.BOM_UTF8)
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"no text in utf-8: save it as utf-8, or unpack it: {error}") from error
    return re.sub(rb"(?m)^([#%].*|[ \t\r]+)$", b"", content)


def _read(text: bytes, delimiter: str | None, header: bool | None) -> _Table:
    found = re.search(rb"[^\r\n]+", text)
    if found is None:
        return _Table(["src", "dst"], [np.empty(0, object)] * 2, text)
    first = found[0].decode()
    delimiter = _delimiter(first) if delimiter is None else delimiter
    if delimiter == " ":
        text = re.sub(rb"(?m)^[ \t]+|[ \t\r]+$", b"", text)
        text, first, delimiter = re.sub(rb"[ \t]+", b"\t", text), "\t".join(first.split()), "\t"
    cells = [cell.strip() for cell in next(csv.reader([first], delimiter=delimiter), [])]
    plain = ["src", "dst", *_COLUMNS, *(f"column{i}" for i in range(5, len(cells) + 1))]
    table = _Table(cells if _has_words(cells) else plain[: max(len(cells), 2)], [], text)
    table = table._replace(columns=_columns(table, delimiter))
    return _with_head(table, cells) if (_is_head(table, cells) if header is None else header) else table


def _delimiter(line: str) -> str:
    """What separates the cells of the first line."""
    if re.fullmatch(r"[\d.eE+-]+([ \t]+[\d.eE+-]+)+[ \t]*", line) and " " in line:
        return " "
    if "," in line and ";" in line and "\t" not in line and '"' not in line:
        raise ValueError(f"the first line has commas and semicolons, {line!r}: pass delimiter=',' or ';'")
    return next((mark for mark in "\t,;" if mark in line), " " if " " in line else ",")


def _is_head(table: _Table, cells: list[str]) -> bool:
    """Whether the first line names the columns."""
    if _has_words(cells):
        return True
    if len(table.columns[0]) < 2 or any(map(_is_number, cells)):
        return False
    return any(all(map(_is_number, column[1:])) for column in table.columns)


def _with_head(table: _Table, cells: list[str]) -> _Table:
    """The table without its first line: sources, destinations, and the other columns by their names."""
    words = [cell.lower() for cell in cells]
    src, dst = (next((i for i, word in enumerate(words) if word in heads), None) for heads in (_SRC, _DST))
    src = (1 if dst == 0 else 0) if src is None else src
    dst = (1 if src == 0 else 0) if dst is None else dst
    order = [src, dst, *(i for i in range(len(cells)) if i not in (src, dst))]
    names = ["src", "dst", *(cells[i] for i in order[2:])]
    return table._replace(names=names, columns=[table.columns[i][1:] for i in order], head=True)


def _has_words(cells: list[str]) -> bool:
    words = {cell.lower() for cell in cells}
    return bool(words & _SRC and words & _DST)


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell)) and "_" not in cell
    except ValueError:
        return False


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
            message = f"{wrong[0].text!r} (the delimiter is {delimiter!r}: pass another if not)"
            raise table.ragged(wrong[0].number - 1, message) from error
        raise
    columns = [compute.call_function("utf8_trim_whitespace", [read[name]]).to_numpy() for name in names]
    empty = np.flatnonzero((columns[0] == "") | (columns[1] == ""))
    for row in empty[:1].tolist():
        raise table.ragged(row, repr(",".join(column[row] for column in columns)))
    return columns


def _numbers(table: _Table, column: int) -> np.ndarray:
    """A column as integers if all are, else as floats; `from_edges` says what 32 bits hold of them."""
    name, cells = table.names[column], table.columns[column]
    if "_" not in "".join(cells):
        with suppress(ValueError, OverflowError):
            return cells.astype(np.int64)
    for row in (row for row, cell in enumerate(cells) if not _is_number(cell)):
        raise table.bad(row, f"{name} must be a finite number, got {cells[row]!r}")
    return cells.astype(np.float64)


def _ids(table: _Table) -> np.ndarray:
    ends = np.stack(table.columns[:2])
    if (ids := _whole(ends)) is not None and (ids >= 0).all():
        return ids
    for row, cells in enumerate(ends.T):
        for cell in cells:
            if not (cell.isdecimal() and str(int(cell)) == cell):
                raise table.bad(row, f"with num_nodes, nodes must be ids 0, 1, ..., got {cell!r}")
    raise ValueError("with num_nodes, nodes must be ids 0, 1, ..., below 2^63")


def _name(ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sorted names, and each end's place among them."""
    if (numbers := _whole(ends)) is not None:
        names, places = np.unique(numbers, return_inverse=True)
        return names, places.reshape(ends.shape)
    names = sorted(set(ends.ravel()))
    place = {name: i for i, name in enumerate(names)}
    return np.array(names, str), np.array([[place[name] for name in side] for side in ends])


def _whole(cells: np.ndarray) -> np.ndarray | None:
    """Integers, if all cells are, digit for digit: `007` and `7` are two names."""
    with suppress(ValueError, OverflowError):
        numbers = cells.astype(np.int64)
        if (numbers.astype(str) == cells.astype(str)).all():
            return numbers
    return None
