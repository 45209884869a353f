"""An edge list larger than the memory allowed, written as shards: seconds, peak memory, and after kills.

    python -m benchmarks.shard --num-edges 200e6 --json shard.json

Heavy-tailed edges (destinations `num_nodes * u^4` of a uniform `u`) go as int32 pairs into `.npy` files. For
each placement a process of its own runs `jsage.data.shard_edges`, with nothing else in its memory; its peak
is the system's figure, interpreter and libraries included. The last row is a run that is killed by SIGKILL
while it reads and again while it writes, then gone on with: `same_checksums` says whether `meta.json`, which
holds the SHA-256 of every file, is that of the run that was left alone.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import run
from benchmarks.peers.process import ROOT, peak_rss_bytes
from experiments.shard import PLACEMENTS
from jsage.data import edge_files, shard_edges
from jsage.data.shards.from_edges import Sorting

PER_FILE = 10_000_000
DEGREE = 20
KILLS = ("read", "write")


def main(options: argparse.Namespace) -> list[dict]:
    """A row for each placement, and one of a run that was killed twice."""
    if options.target:
        write(options)
        return []
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="shard-") as folder:
        began = time.perf_counter()
        make_edges(Path(folder, "edges"), int(options.num_edges), options.num_nodes)
        print(f"edges made in {time.perf_counter() - began:.0f} s", file=sys.stderr)
        rows = []
        for placement in options.placements:
            rows.append(measured(options, Path(folder), placement, "whole"))
            if placement == options.placements[-1]:
                rows.append(killed(options, Path(folder), placement, "killed"))
            shutil.rmtree(Path(folder, "whole"))
    return rows


def make_edges(folder: Path, num_edges: int, num_nodes: int) -> None:
    """The files; `num_nodes` nodes, few of which get most of the edges."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for number, first in enumerate(range(0, num_edges, PER_FILE)):
        size = min(PER_FILE, num_edges - first)
        dst = (num_nodes * random.random(size, np.float32) ** 4).astype(np.int32)
        np.minimum(dst, num_nodes - 1, out=dst)  # float32 may round up
        src = random.integers(0, num_nodes, size, np.int32)
        np.save(folder / f"{number:05d}.npy", np.stack([src, dst], 1))


def measured(options: argparse.Namespace, folder: Path, placement: str, name: str) -> dict:
    """One run that nothing disturbs."""
    process = start(options, folder, placement, name)
    lines = process.communicate()[0].splitlines()
    if process.returncode:
        raise RuntimeError(f"a run of {placement} ended with status {process.returncode}")
    return {**labels(options, placement), "kills": 0, **json.loads(lines[-1])}


def killed(options: argparse.Namespace, folder: Path, placement: str, name: str) -> dict:
    """A run that is killed while it reads and while it writes, and then left alone."""
    began, at = time.perf_counter(), []
    for stage in KILLS:
        with start(options, folder, placement, name) as process:
            assert process.stdout is not None
            for line in process.stdout:
                told = json.loads(line)
                if told.get("stage") == stage and told["done"] >= told["total"] // 2:
                    at.append({"stage": stage, "done": told["done"]})
                    process.send_signal(signal.SIGKILL)
                    break
        if process.returncode != -signal.SIGKILL:
            raise RuntimeError(f"a run to kill ended with status {process.returncode}")
    last = measured(options, folder, placement, name)
    same = Path(folder, name, "meta.json").read_bytes() == Path(folder, "whole", "meta.json").read_bytes()
    shutil.rmtree(folder / name)
    seconds = time.perf_counter() - began
    return {**last, "kills": len(at), "killed_at": at, "seconds": seconds, "same_checksums": same}


def start(options: argparse.Namespace, folder: Path, placement: str, name: str) -> subprocess.Popen:
    """A process that writes the shards; it prints its progress, and at the end the figures."""
    given = {"num-nodes": options.num_nodes, "shards": options.shards, "memory": options.memory}
    arguments = [f"--{key}={value}" for key, value in given.items()]
    arguments += [f"--target={folder / name}", f"--folder={folder / 'edges'}", f"--placements={placement}"]
    command = [sys.executable, "-m", "benchmarks.shard", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def write(options: argparse.Namespace) -> None:
    """In a process of its own: write the shards, and print what it took."""

    def progress(done) -> None:
        print(json.dumps(done._asdict()), flush=True)

    began = time.perf_counter()
    placement = PLACEMENTS[options.placements[0]](options.num_nodes, options.shards)
    sorting = Sorting(memory_bytes=int(options.memory), progress=progress)
    shard_edges(options.target, edge_files(options.folder), placement, sorting=sorting)
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "peak_rss_bytes": peak_rss_bytes()}), flush=True)


def labels(options: argparse.Namespace, placement: str) -> dict:
    names = ("num_nodes", "shards")
    sizes = {name: getattr(options, name) for name in names}
    return {
        "placement": placement,
        "num_edges": int(options.num_edges),
        **sizes,
        "memory": int(options.memory),
    }


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.shard", description=(__doc__ or "").split("\n")[0]
    )
    made.set_defaults(graph=Path("heavy-tailed"))
    made.add_argument("--num-edges", type=float, default=200e6, help="edges (default: 200e6)")
    made.add_argument("--num-nodes", type=int, help=f"nodes (default: an edge in {DEGREE})")
    made.add_argument("--shards", type=int, default=16, help="shards (default: 16)")
    made.add_argument("--memory", type=float, default=3e9, help="bytes of arrays in work (default: 3e9)")
    made.add_argument("--placements", type=lambda text: text.split(","), default=list(PLACEMENTS), help="all")
    made.add_argument("--folder", type=Path, help="where there is room for the files (default: the system's)")
    made.add_argument("--json", metavar="FILE", help="write the result there; - is standard output")
    made.add_argument("--target", type=Path, help=argparse.SUPPRESS)
    return made


def shaped(parsed: argparse.Namespace) -> list[dict]:
    """`main`, with the number of nodes that follows from that of the edges."""
    parsed.num_nodes = parsed.num_nodes or max(int(parsed.num_edges) // DEGREE, 1)
    return main(parsed)


if __name__ == "__main__":
    sys.exit(run(options(), shaped))
