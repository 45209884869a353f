"""The tables of the results page, from the JSON files that the benchmarks wrote.

    python -m benchmarks.report results/ benchmarks/README.md

Replaces what stands between the two marks of the page; without a page, prints it.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.common.output import write_whole

START, END = "<!-- tables: start -->", "<!-- tables: end -->"
Column = tuple[str, Callable[[dict], Any]]


def milliseconds(row: dict) -> str:
    return f"{1e3 * row['seconds_min']:.3g} / {1e3 * row['seconds_median']:.3g}"


def part(name: str) -> Column:
    return f"{name} ms", lambda row: f"{1e3 * row[name]['seconds_min']:.3g}" if name in row else ""


def floor(name: str) -> Column:
    return f"floor: {name} ms", lambda row: f"{1e3 * row['floor'][f'{name}_seconds']:.3g}"


def plain(title: str, name: str, form: str = "{}") -> Column:
    return title, lambda row: form.format(row[name]) if row.get(name) is not None else ""


def numbers(title: str, name: str) -> Column:
    return title, lambda row: ", ".join("tree" if x is None else str(x) for x in row.get(name) or ())


def mega(title: str, name: str) -> Column:
    return title, lambda row: f"{row[name] / 1e6:,.0f}"


TIME: Column = ("ms (min / median)", milliseconds)
COMPILED: list[Column] = [
    *(plain(name, name) for name in ("device", "aggregator", "dtype", "kind", "chips")),
    mega("arguments MB", "argument_bytes"),
    ("temporaries MB", lambda row: _rate(row, "temp_bytes", 1e6)),
    ("of twice the graph", lambda row: _rate(row, "doubled_temp_bytes", 1e6)),
    ("offenders", lambda row: len(row["offenders"] + row.get("doubled_offenders", []))),
    plain("compiled in s", "compile_seconds", "{:.0f}"),
]
"""Of a program that a compiler made for a device that was not there."""
COLUMNS: dict[str, list[Column]] = {
    "sample": [
        numbers("fanouts", "fanouts"),
        *(plain(name, name) for name in ("sampler", "draw", "key", "calls")),
        TIME,
        plain("seeds/s", "seeds_per_second", "{:,.0f}"),
    ],
    "train": [
        numbers("fanouts", "fanouts"),
        *(plain(name, name) for name in ("form", "aggregate", "dtype")),
        numbers("capacities", "capacities"),
        ("step " + TIME[0], milliseconds),
        *map(part, ("sampling", "gathering", "compute")),
        *map(floor, ("matmul", "gather", "random")),
        plain("step / floor", "ratio_to_floor", "{:.2f}"),
        plain("first step s", "first_step_seconds", "{:.2f}"),
        mega("temporaries MB", "temp_bytes"),
        mega("peak MB", "peak_rss_bytes"),
    ],
    "unsupervised": [
        *(plain(name, name) for name in ("kind", "seeds", "pairs")),
        numbers("fanouts", "fanouts"),
        ("step " + TIME[0], milliseconds),
        plain("to labels", "ratio_to_labels", "{:.2f}"),
        *map(part, ("positives", "negatives", "sampling", "gathering", "compute")),
        plain("traces", "traces"),
        mega("temporaries MB", "temp_bytes"),
        mega("peak MB", "peak_rss_bytes"),
    ],
    "scaling": [
        plain("kind", "kind"),
        plain("nodes", "num_nodes", "{:,}"),
        plain("edges", "num_edges", "{:,}"),
        plain("batch", "batch_size"),
        numbers("fanouts", "fanouts"),
        plain("form", "form"),
        TIME,
        mega("temporaries MB", "temp_bytes"),
        mega("peak MB", "peak_rss_bytes"),
        ("row reads M/s", lambda row: _rate(row, "row_reads_per_second", 1e6)),
        ("edge reads M/s", lambda row: _rate(row, "edge_reads_per_second", 1e6)),
        plain("to the smallest", "ratio", "{:.2f}"),
        plain("beyond caches", "ratio_beyond_caches", "{:.2f}"),
    ],
    "peers": [
        *(plain(name, name) for name in ("allocator", "side", "form", "sampler")),
        numbers("fanouts", "fanouts"),
        ("ms (min / median)", lambda row: row.get("not_run") or milliseconds(row)),
        plain("times ours", "ratio_to_jsage", "{:.1f}"),
    ],
    "tpu": COMPILED,
    "gpu": COMPILED,
}


def table(rows: Sequence[dict], columns: Sequence[Column]) -> list[str]:
    """Markdown; a column that is empty in every row is left out."""
    cells = [[str(cell(row)) for _, cell in columns] for row in rows]
    kept = [i for i in range(len(columns)) if any(line[i] for line in cells)]
    lines = [[columns[i][0] for i in kept], ["---"] * len(kept), *([line[i] for i in kept] for line in cells)]
    return [f"| {' | '.join(line)} |" for line in lines]


def any_columns(rows: Sequence[dict]) -> list[Column]:
    """Of a benchmark without columns of its own here: all that rows hold but nested objects."""
    names = dict.fromkeys(name for row in rows for name, value in row.items() if not isinstance(value, dict))
    return [(name, lambda row, name=name: _short(row.get(name))) for name in names]


def section(report: dict) -> list[str]:
    """The heading, command, machine and table of one file."""
    machine, rows = report["machine"], report["rows"]
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    where = f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_bytes'] / 2**30:.0f} GiB"
    columns = COLUMNS.get(report["benchmark"]) or any_columns(rows)
    heading = f"### {report['benchmark']}, {report['graph']}"
    return [heading, "", f"`{report['command']}`", "", f"{where}; {versions}.", "", *table(rows, columns), ""]


def sections(folder: Path) -> str:
    """All the reports of a folder, by benchmark and file name."""
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if not reports:
        raise ValueError(f"no .json files in {folder}: run the benchmarks with --json {folder}/NAME.json")
    order = {name: at for at, name in enumerate(COLUMNS)}
    reports.sort(key=lambda report: order.get(report["benchmark"], len(order)))
    return "\n".join(line for report in reports for line in section(report))


def insert(page: Path, text: str) -> None:
    """Put the text between the page's marks."""
    before, start, rest = page.read_text().partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"{page} must hold the lines {START} and {END}, in this order")
    write_whole(page, f"{before}{START}\n\n{text}\n{END}{after}")


def main(arguments: list[str] | None = None) -> int:
    """The command: 0, or 2 and one line on standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="where the JSON files are")
    parser.add_argument("page", type=Path, nargs="?", help="the page to change; none: print")
    options = parser.parse_args(arguments)
    try:
        text = sections(options.folder)
        print(text) if options.page is None else insert(options.page, text)
    except (OSError, ValueError, KeyError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


def _rate(row: dict, name: str, unit: float) -> str:
    return f"{row[name] / unit:.3g}" if name in row else ""


def _short(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
