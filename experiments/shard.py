"""Cut a graph into shards, from an edge list that need not fit memory.

    python -m experiments.shard --edges FOLDER --num-nodes 100000000 --shards 16 --out DIR --memory 4e9
    python -m experiments.shard --edges FOLDER --num-nodes 2449029 --out DIR --placement balanced \\
        --symmetrize --features features.npy --labels labels.npy

FOLDER holds `.npy` or Parquet files of edges (`jsage.data.shards.edge_sources` says how); DIR is what
`jsage.data.open_shards` reads. Killed, the same command goes on: sorted edges and finished shards are kept.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from experiments.common.options import command, read
from jsage.data import Balanced, Sorting, Tables, edge_files, open_shards, shard_edges
from jsage.data.shards.from_edges import Progress
from jsage.graph import contiguous, hashed
from jsage.recipes.options import option

PLACEMENTS = {"contiguous": contiguous, "hashed": hashed, "balanced": Balanced}
STAGES = {
    "read": "edges read",
    "sort": "edges sorted",
    "write": "edges written",
    "tables": "rows of tables written",
}


@dataclass(frozen=True)
class Config:
    """Every option; --edges, --num-nodes and --out must be given."""

    edges: str | None = option(None, "a folder of .npy or .parquet files")
    num_nodes: int = option(0, "how many nodes there are, isolated ones included")
    shards: int = option(8, "how many shards are made")
    placement: str = option(
        "contiguous", "how nodes are placed: by equal ranges, mixed, or by equal costs", list(PLACEMENTS)
    )
    out: str | None = option(None, "the directory to write; it must not exist")
    memory: float = option(1e9, "bytes that sorting and arrays in work may take")
    symmetrize: bool = option(False, "add the reverse of every edge")
    features: str | None = option(None, "an .npy file with a row a node; so are labels")
    labels: str | None = option(None, "an .npy file")
    train: str | None = option(None, "an .npy file of node ids; so are val and test")
    val: str | None = option(None, "an .npy file")
    test: str | None = option(None, "an .npy file")
    json: str | None = option(None, "write the result there; - is standard output")


def main(config: Config) -> dict:
    """Write the shards; print a line; return what `--json` writes."""
    if not (config.edges and config.out and config.num_nodes):
        raise ValueError("--edges, --num-nodes and --out must be given")
    began = time.perf_counter()
    placement = PLACEMENTS[config.placement](config.num_nodes, config.shards)
    with bars() as report:
        sorting = Sorting(memory_bytes=int(config.memory), progress=report)
        try:
            source, symmetrize = edge_files(config.edges), config.symmetrize
            shard_edges(config.out, source, placement, tables(config), symmetrize=symmetrize, sorting=sorting)
        except ImportError as error:  # of an extra: an error of the input
            raise ValueError(str(error)) from error
    made = open_shards(config.out)
    line = f"{Path(config.out).name}: {made.num_edges:,} edges, at most {max(made.edges):,} a shard"
    Console(stderr=True).print(line, highlight=False)
    return {
        "num_nodes": config.num_nodes,
        "num_edges": made.num_edges,
        "nodes": list(made.nodes),
        "edges": list(made.edges),
        "seconds": time.perf_counter() - began,
    }


def tables(config: Config) -> Tables:
    """What belongs to nodes; features stay in their file."""
    files = {name: getattr(config, name) for name in Tables._fields}
    return Tables(
        **{
            name: np.load(file, mmap_mode="r" if name == "features" else None)
            for name, file in files.items()
            if file
        }
    )


@contextmanager
def bars() -> Iterator[Callable[[Progress], None]]:
    """A bar a stage, on a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console, tasks = Console(stderr=True), {}
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:

        def report(progress: Progress) -> None:
            stage, done, total = progress
            if stage not in tasks:
                tasks[stage] = shown.add_task(STAGES[stage], total=total)
            shown.update(tasks[stage], completed=done)

        yield report


def parse(arguments: list[str] | None = None) -> Config:
    """Read the command line."""
    return read(Config, arguments, "shard", __doc__)


def run(arguments: list[str] | None = None) -> int:
    """The command: 0, or 2 and one line on standard error for bad input."""
    return command(main, partial(parse, arguments))


if __name__ == "__main__":
    sys.exit(run())
