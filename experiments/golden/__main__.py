"""Compare layers with the outputs, gradients and attention weights that another library computed.

    python -m experiments.golden pyg_open.npz --json golden.json

FILE holds graphs and cases: PyG's class with its arguments, its parameters, its output and gradients. Each
case is built here and run on every layout, each a row of the result: the largest deviations of the output,
of the gradients of inputs and parameters, and of the attention weights. A row is ok within 1e-5 and ten
times the file's own rounding error. Ends with status 1 if a row is not.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.common.options import command, read
from experiments.golden.files import Case, read_cases
from experiments.golden.layers import Unsupported, layer_of
from experiments.golden.runs import Found, Problem, encoded, exactly, on_layouts, problem_of
from experiments.golden.typed import on_typed_layouts, typed_problem
from jsage.recipes.options import option

LEAST = 1e-5
"""What a deviation may be beside ten times the file's rounding error."""
COLUMNS = ("output", "grad_inputs", "grad_params", "attention", "tolerance")


@dataclass(frozen=True)
class Config:
    """The file, and where the rows go."""

    file: str = field(metadata={"help": "an .npz file of golden values", "choices": None})
    cases: str = option("", "those of these names, separated by commas; all where none are given")
    json: str | None = option(None, "write the result there; - is standard output")


def main(config: Config) -> dict:
    """A row for each case and layout; return what `--json` writes."""
    cases = read_cases(config.file)
    if config.cases:
        wanted, names = config.cases.split(","), {case.name for case in cases}
        if missing := [name for name in wanted if name not in names]:
            raise ValueError(f"{config.file} has no case {missing[0]!r}, but {', '.join(sorted(names))}")
        cases = [case for case in cases if case.name in wanted]
    rows = [row for case in cases for row in rows_of(case)]
    show(rows)
    ok, skipped = (sum(bool(row.get(name)) for row in rows) for name in ("ok", "skipped"))
    return {
        "file": config.file,
        "rows": rows,
        "ok": ok,
        "skipped": skipped,
        "failed": len(rows) - ok - skipped,
    }


def rows_of(case: Case) -> Iterator[dict[str, Any]]:
    """The rows of a case: one a layout, and one with the reason where it cannot be run."""
    try:
        layer = layer_of(case)
    except Unsupported as reason:
        yield {"case": case.name, "layout": "all", "skipped": str(reason)}
        return
    if "times" in case.inputs:
        problem, found = encoded(case, layer)
        yield row_of(problem, "encoder", found)
        return
    if case.kind == "HeteroConv":
        problem = typed_problem(case, layer)
        for layout, found in on_typed_layouts(problem).items():
            yield row_of(problem, layout, found)
        return
    problem = problem_of(case, layer)
    for layout, found in on_layouts(problem).items():
        yield row_of(problem, layout, found)
    try:
        for layout, found in exactly(problem):
            yield row_of(problem, layout, found)
    except Unsupported as reason:
        for layout in ("sliced", "exact", "streamed"):
            yield {"case": case.name, "layout": layout, "skipped": str(reason)}


def row_of(problem: Problem, layout: str, found: Found) -> dict[str, Any]:
    """How far a layout is from the file."""
    case, tolerance = problem.case, LEAST + 10 * problem.case.rounding
    given = {name: np.array(x) for name, x in case.grads.items() if name in found.grads}
    if "edge_weight" in given:
        given["edge_weight"][list(problem.layer.unread)] = 0
    parts = {name: name.startswith("param/") for name in given}
    grads = [
        largest((found.grads[name], given[name]) for name, params in parts.items() if params == kind)
        for kind in (False, True)
    ]
    deviations = {
        "output": largest([(found.out, case.out)]),
        "grad_inputs": grads[0],
        "grad_params": grads[1],
        "attention": None if found.weights is None else largest([(found.weights, in_our_order(problem))]),
    }
    ok = all(value is None or value <= tolerance for value in deviations.values())  # NaN is not
    note = {"note": text} if (text := found.note or problem.layer.note) else {}
    if found.grads and not found.note and (missing := sorted(case.grads.keys() - found.grads.keys())):
        ok, note = False, {"note": f"no gradient of {', '.join(missing)}"}
    row = {"case": case.name, "layout": layout, **deviations, "tolerance": tolerance, "ok": ok}
    return {**{name: finite(x) for name, x in row.items()}, **note}


def finite(value: Any) -> Any:
    """The value, or what JSON has for a number that is none: text."""
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value


def largest(pairs: Any) -> float | None:
    """The largest deviation among pairs of arrays, NaN if any is; None without pairs."""
    found = [np.abs(np.asarray(a, np.float64) - np.asarray(b)).max(initial=0.0) for a, b in pairs]
    return float(np.max(found)) if found else None


def in_our_order(problem: Problem) -> np.ndarray:
    """PyG's attention weights as ours stand: edges by destination, then loops, where those are own slots."""
    weights, (src, dst) = problem.case.alpha or (np.empty(0), np.empty((2, 0)))
    edges = problem.structure.num_edges
    loop = (src == dst) & (len(src) > edges)
    order = np.flatnonzero(~loop)[np.argsort(dst[~loop], kind="stable")]
    loops = np.flatnonzero(loop)
    return weights[np.concatenate([order, loops[np.argsort(dst[loops], kind="stable")]])]


def show(rows: list[dict[str, Any]]) -> None:
    """The rows on the terminal."""
    table, names = Table("case", "layout", *COLUMNS, ""), ("case", "layout")
    for row in rows:
        if "skipped" not in row:
            texts = [
                "" if x is None else x if isinstance(x, str) else f"{x:.1e}" for x in map(row.get, COLUMNS)
            ]
            table.add_row(*map(row.get, names), *texts, "ok" if row["ok"] else "FAILED")
    Console().print(table)
    for row in rows:
        if "skipped" in row:
            print(f"skipped: {row['case']}, {row['layout']}: {row['skipped']}")


def run(arguments: list[str] | None = None) -> int:
    """The command: 0, 1 if a row is not ok, 2 and one line on standard error for bad input."""
    failed: list[int] = []

    def job(config: Config) -> dict:
        result = main(config)
        failed.append(result["failed"])
        return result

    return command(job, partial(read, Config, arguments, "golden", __doc__)) or int(any(failed))


if __name__ == "__main__":
    sys.exit(run())
