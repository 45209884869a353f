"""Draw the results of `benchmarks.scaling`.

python -m benchmarks.plot results/scaling.json benchmarks/scaling.svg

The reports of several runs, each of some kinds, are drawn as one.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

KINDS = {
    "nodes": ("nodes of a random graph", lambda row: f"{row['num_nodes']:.0e}".replace("e+0", "e")),
    "batch_size": ("seeds a batch", lambda row: str(row["batch_size"])),
    "fanouts": ("fanouts", lambda row: ",".join(map(str, row["fanouts"]))),
    "depth": ("fanouts", lambda row: ",".join(map(str, row["fanouts"]))),
}
COLORS = {"trees": "#1b6ca8", "compacted": "#d1495b"}


def draw(reports: list[dict], target: Path) -> None:
    """One panel a kind: milliseconds a step, and for growing graphs what caches explain."""
    from matplotlib.figure import Figure

    rows, machine = [row for report in reports for row in report["rows"]], reports[0]["machine"]
    found = [kind for kind in KINDS if any(row["kind"] == kind for row in rows)]
    figure = Figure(figsize=(4.2 * len(found), 3.6), layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
        panel(axes, kind, [row for row in rows if row["kind"] == kind])
    figure.suptitle(f"Training step, {machine['cores']} cores of {machine['cpu']}", fontsize=10)
    figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)


def panel(axes: Any, kind: str, rows: list[dict]) -> None:
    title, label = KINDS[kind]
    places = list(dict.fromkeys(label(row) for row in rows))
    for form, color in COLORS.items():
        mine = [row for row in rows if row["form"] == form]
        if mine:
            at = [places.index(label(row)) for row in mine]
            axes.plot(at, [1e3 * row["seconds_min"] for row in mine], "o-", color=color, label=form)
    if kind == "nodes":
        explained = [1e3 * row["explained_seconds"] for row in rows]
        axes.plot(range(len(rows)), explained, "--", color="grey", label="explained by caches")
    axes.set_xticks(range(len(places)), places, fontsize=8)
    axes.set(xlabel=title, ylabel="ms a step", ylim=(0, None), title=kind.replace("_", " "))
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8)


def main(arguments: list[str] | None = None) -> int:
    """The command: 0, or 2 and one line on standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plot", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("reports", type=Path, nargs="+", help="JSON files of benchmarks.scaling")
    parser.add_argument("out", type=Path, help="the picture to write: .svg or .png")
    options = parser.parse_args(arguments)
    try:
        draw([json.loads(path.read_text()) for path in options.reports], options.out)
    except (OSError, ValueError, KeyError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
