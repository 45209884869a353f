"""Writers killed at random moments, which go on to the same bytes: `python tests/kills.py --count 200`.

Each writer is a process of its own, ended by SIGKILL at a moment drawn evenly from the time that it takes;
then it is started again, killed again or not, until it ends. What it left is compared with what one left that
nobody killed, and nothing else may be there. Then two of them write to the same place at once: the second is
refused, or late. A table says how often; the status is 1 if anything differs.

`python tests/kills.py --write NAME TARGET [--slow]` is one writer alone, which prints how far it is.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from experiments import classify  # noqa: E402
from experiments.common.config import parse  # noqa: E402
from jsage import GraphSAGE, data, from_edges, full_block  # noqa: E402
from jsage.data import Balanced, Sorting, Tables, edge_arrays, shard_dataset, shard_edges  # noqa: E402
from jsage.graph import hashed  # noqa: E402
from jsage.infer import StreamOptions, embed_to_file  # noqa: E402
from jsage.sampling import epoch, fast_key  # noqa: E402
from jsage.serving import export  # noqa: E402
from jsage.train import (  # noqa: E402
    checkpoint,
    init_state,
    init_stopping,
    make_update,
    observe,
    train_epoch,
)

Begin = Callable[[], None]
NODES = 300
EPOCHS = 8


def edge_pieces() -> list[np.ndarray]:
    """Edges with heavy nodes, in pieces."""
    random = np.random.default_rng(0)
    dst = (NODES * random.random(900) ** 4).astype(np.int32)
    return np.split(np.stack([random.integers(0, NODES, 900, np.int32), dst], 1), [7, 300, 301, 700])


def node_tables() -> Tables:
    """What belongs to their nodes."""
    features = np.random.default_rng(1).normal(size=(NODES, 2)).astype(np.float32)
    return Tables(features, np.arange(NODES, dtype=np.int32) % 7, np.arange(0, NODES, 3))


def some_dataset() -> data.Dataset:
    """Some megabytes."""
    random, count = np.random.default_rng(0), 20_000
    graph = from_edges(*random.integers(0, count, (2, 200_000)), count)
    features = random.normal(size=(count, 64)).astype(np.float32)
    splits = np.split(random.permutation(count).astype(np.int32), [10_000, 15_000])
    return data.Dataset(graph, features, random.integers(0, 9, count).astype(np.int32), *splits)


def report(slow: float, progress: Any) -> None:
    """Say how far it is, and give a killer time."""
    print(progress.stage, progress.done, flush=True)
    time.sleep(slow)


def write_shards(target: Path, begin: Begin, slow: float = 0.002) -> None:
    """An edge list sorted into shards, in small pieces."""
    for module, name in (("edge_sources", "_PIECE"), ("edge_sort", "_READ")):
        setattr(sys.modules[f"jsage.data.shards.{module}"], name, 64)
    sorting = Sorting(memory_bytes=2**27, progress=partial(report, slow))
    source, tables = edge_arrays(edge_pieces()), node_tables()
    begin()
    shard_edges(target, source, Balanced(NODES, 3), tables, sorting=sorting)


def write_cut(target: Path, begin: Begin) -> None:
    """A data set cut into shards."""
    dataset = some_dataset()
    begin()
    shard_dataset(target, dataset, hashed(dataset.graph.num_nodes, 8))


def write_directory(target: Path, begin: Begin) -> None:
    """A graph directory."""
    dataset = some_dataset()
    begin()
    data.save(target, dataset)


def write_artefact(target: Path, begin: Begin) -> None:
    """Programs to be served, of four sizes."""
    plan = export.Plan(fanouts=(4,), sizes=(1, 2, 4), new_sizes=(1,))
    params = {"scale": jnp.arange(100_000.0)}
    graph, features = from_edges([1, 2], [0, 0], 3), np.eye(3, dtype=np.float32)
    begin()
    apply = lambda params, h, blocks: params["scale"].sum() * blocks[0].sum(h)  # noqa: E731
    export.save(target, apply, params, graph, features, plan)


def write_embeddings(target: Path, begin: Begin, slow: float = 0.002) -> None:
    """Embeddings of all nodes, in small parts."""
    random, count = np.random.default_rng(0), 400
    graph = from_edges(*random.integers(0, count, (2, 6_000)), count)
    features = random.normal(size=(count, 12)).astype(np.float32)
    model = GraphSAGE(hidden=16, out=6)
    params = model.init(jax.random.key(0), jnp.asarray(features), (full_block(graph),) * 2)
    begin()
    options = StreamOptions(rows=20, seconds=0.0, progress=partial(report, slow))
    embed_to_file(str(target), model, params, graph, features, options)


def loss_fn(params: Any, stats: Any, batch: Any, key: jax.Array) -> Any:
    """A small network with dropout on noisy targets; `stats` is a running mean of the loss."""
    x, y, mask = batch
    h = jnp.tanh(x @ params["hidden"])
    h = jnp.where(jax.random.bernoulli(key, 0.5, h.shape), 2.0 * h, 0.0)
    loss = jnp.where(mask, (h @ params["out"] - y) ** 2, 0.0).sum() / mask.sum()
    return loss, ({"loss": loss}, {"loss": 0.9 * stats["loss"] + 0.1 * loss})


def beginning() -> tuple[Any, Any, optax.GradientTransformation]:
    """The data and the state that training begins with."""
    rng, key = np.random.default_rng(0), fast_key(0)
    x = rng.normal(size=(500, 16)).astype(np.float32)
    y = np.sin(x[:, 0]) + rng.normal(scale=0.1, size=500).astype(np.float32)
    params = {"hidden": np.float32(rng.normal(size=(16, 32)) / 4), "out": np.float32(rng.normal(size=32) / 6)}
    optimizer = optax.adam(1e-2)
    state = init_state(key, params, optimizer, {"loss": jnp.zeros(())})
    return (x, y), (state, init_stopping(state)), optimizer


def write_checkpoints(target: Path, begin: Begin) -> None:
    """Dropout draws from the state's key, Adam has moments, early stopping keeps the best."""
    (x, y), saved, optimizer = beginning()
    update = make_update(loss_fn, optimizer)

    @jax.jit
    def run(state, number, x, y):
        seeds, mask = epoch(jax.random.fold_in(state.key, number), jnp.arange(500), 64)
        return train_epoch(update, state, (x[seeds], y[seeds], mask))

    begin()
    first = checkpoint.latest_step(target) or 0
    state, stopping = checkpoint.restore(target, saved) if first else saved
    for number in range(first, EPOCHS):
        state, metrics = run(state, number, x, y)
        stopping = observe(stopping, -metrics["loss"], state)
        checkpoint.save(target, number + 1, (state, stopping))
        print("epoch", number + 1, flush=True)


def write_run(target: Path, begin: Begin) -> None:
    """A whole job, which keeps every epoch."""
    source = target.parent / "three.npz"
    if not source.exists():
        random = np.random.default_rng(0)
        split, group = random.permutation(60), np.arange(60) % 3
        src = random.integers(0, 60, 600)
        masks = {"train_mask": split < 30, "val_mask": (split >= 30) & (split < 45), "test_mask": split >= 45}
        edges = np.stack([src, (src + 3 * random.integers(1, 20, 600)) % 60])
        np.savez(source, edge_index=edges, y=group, **masks)
    begin()
    small = "--layers 1 --fanouts 4 --hidden 8 --identity 8 --batch-size 16 --epochs 8"
    given = [*small.split(), "--save-every", "1", "--resume", "--dataset", str(source), "--out", str(target)]
    classify.main(parse(given, "classify", None))


def read_files(target: Path) -> str:
    """A hash of a file, or of all files of a folder."""
    found = hashlib.sha256()
    for file in sorted(target.rglob("*")) if target.is_dir() else [target]:
        if file.is_file():
            found.update(f"{file.relative_to(target)} ".encode() + file.read_bytes())
    return found.hexdigest()


def read_checkpoints(target: Path) -> str:
    """The last one's numbers, and which there are."""
    state, stopping = checkpoint.restore(target, beginning()[1])
    leaves = jax.tree.leaves((state._replace(key=jax.random.key_data(state.key)), stopping))
    numbers = b"".join(np.asarray(leaf).tobytes() for leaf in leaves)
    return f"{sorted(os.listdir(target))} {hashlib.sha256(numbers).hexdigest()}"


def read_run(target: Path) -> str:
    """The epochs without their seconds, the checkpoints' checksums, and which files there are."""
    folder = target / "graphsage-0"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = sorted((folder / "checkpoints").iterdir())
    sums = [json.loads((step / "_CHECKPOINT_METADATA").read_text())["custom_metadata"] for step in kept]
    names = sorted(os.listdir(target)), sorted(os.listdir(folder)), [step.name for step in kept]
    told = [{name: value for name, value in row.items() if name != "seconds"} for row in rows]
    return f"{names} {hashlib.sha256(json.dumps([told, sums], sort_keys=True).encode()).hexdigest()}"


class Writer(NamedTuple):
    """What writes, and how what it wrote is read."""

    write: Callable[..., None]
    read: Callable[[Path], str] = read_files


WRITERS = {
    "classify": Writer(write_run, read_run),
    "checkpoints": Writer(write_checkpoints, read_checkpoints),
    "embed_to_file": Writer(write_embeddings),
    "shard_edges": Writer(write_shards),
    "shard_dataset": Writer(write_cut),
    "data.save": Writer(write_directory),
    "export.save": Writer(write_artefact),
}
DONE, WRONG, REFUSED, THERE = range(4)


class Child:
    """A process that does one thing, forked before jax has started a thread; it waits for `go` to begin."""

    def __init__(self, action: Callable[[Begin], Any], log: Path) -> None:
        (self._told, tell), (wait, self._go) = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(tell)
            os.close(wait)
            return
        os.close(self._go)

        def begin() -> None:
            os.write(tell, b"b")
            os.read(wait, 1)

        status = WRONG
        with log.open("a") as file, redirect_stdout(file), redirect_stderr(file):
            try:
                os.write(tell, str(action(begin)).encode())
                status = DONE
            except BlockingIOError:
                status = REFUSED
            except FileExistsError:
                status = THERE
            except (
                Exception
            ) as error:  # the other's lock is free between its checkpoints, but these are there
                status = REFUSED if "already holds step" in str(error) else WRONG
                traceback.print_exc()
            finally:
                file.flush()
                os._exit(status)

    def ready(self) -> None:
        """Wait until it is about to write, or has ended."""
        os.read(self._told, 1)

    def go(self) -> None:
        """Let it write."""
        os.write(self._go, b"g")

    def end(self) -> tuple[int, str]:
        """Its status, and what its action gave."""
        os.close(self._go)  # from here on it waits for nobody
        with os.fdopen(self._told) as file:
            told = file.read()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), told


class Strain:
    """One writer under strain, in a folder."""

    def __init__(self, name: str, folder: Path, draw: random.Random) -> None:
        self.name, self.folder, self.draw, self.log = name, folder, draw, folder / "log"
        for attempt in ("compiles", "whole"):
            child = self.start(attempt)
            child.ready()
            child.go()
            began = time.monotonic()
            assert child.end()[0] == DONE, self.log.read_text()
            self.seconds = time.monotonic() - began
        self.expected = self.read("whole")

    def start(self, attempt: str) -> Child:
        """Write, or go on."""
        target = self.folder / attempt / "out.npy"
        target.parent.mkdir(exist_ok=True)
        return Child(partial(WRITERS[self.name].write, target), self.log)

    def read(self, attempt: str) -> str:
        """What is there, and beside it."""
        folder = self.folder / attempt
        told = Child(lambda begin: WRITERS[self.name].read(folder / "out.npy"), self.log).end()[1]
        return f"{told} {sorted(path.name for path in folder.iterdir() if path.suffix != '.npz')}"

    def same(self, attempt: str, *statuses: int) -> bool:
        """Whether all went well, and the same is there; else say what is."""
        same = WRONG not in statuses and self.read(attempt) == self.expected
        if not same:
            print(self.name, attempt, statuses, self.read(attempt), self.expected, file=sys.stderr)
            print(self.log.read_text()[-1500:], file=sys.stderr)
        return same

    def kill(self, kills: int) -> tuple[int, int, int]:
        """Kill it so often: the kills, how often it was started again to the end, the equal ends."""
        killed, ends, equal = 0, 0, 0
        while killed < kills:
            attempt, ends = f"killed-{ends}", ends + 1
            for _ in range(min(self.draw.randint(1, 3), kills - killed)):
                child = self.start(attempt)
                child.ready()
                child.go()
                time.sleep(self.draw.uniform(0.0, self.seconds))
                os.kill(child.pid, signal.SIGKILL)
                killed += child.end()[0] == -signal.SIGKILL
            equal += self.same(attempt, self.start(attempt).end()[0])
        return killed, ends, equal

    def pair(self, pairs: int) -> tuple[int, int]:
        """Let two write at once so often: the second ones that were refused, and that were late."""
        found: Counter[int] = Counter()
        for number in range(pairs):
            children = [self.start(f"pair-{number}") for _ in range(2)]
            for child in children:
                child.ready()
            for child in children:
                child.go()
                time.sleep(self.draw.uniform(0.0, self.seconds / 2))
            statuses = sorted(child.end()[0] for child in children)
            if self.same(f"pair-{number}", *statuses) and statuses[0] == DONE:
                found[statuses[1]] += 1
        return found[REFUSED], found[THERE] + found[DONE]


COLUMNS = ("writer", "kills", "ends", "equal ends", "pairs at once", "second refused", "second late")


def main(count: int, pairs: int, names: list[str], seed: int) -> int:
    """Print the table; 1 if anything differs."""
    draw, rows = random.Random(seed), []
    print("|", " | ".join(COLUMNS), "|\n" + "|---" * len(COLUMNS) + "|")
    for number, name in enumerate(names):
        kills = count // len(names) + (number < count % len(names))
        with tempfile.TemporaryDirectory() as folder:
            strain = Strain(name, Path(folder), draw)
            rows.append((*strain.kill(kills), pairs, *strain.pair(pairs)))
        print("|", name, "|", " | ".join(map(str, rows[-1])), "|", flush=True)
    total = np.sum(rows, 0).tolist()
    print("| together |", " | ".join(map(str, total)), "|")
    _, ends, equal, _, refused, late = total
    return int(ends != equal or refused + late != total[3])


def command() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=200, help="how many kills, of all writers together")
    parser.add_argument("--pairs", type=int, default=10, help="how many second writers, of each")
    parser.add_argument("--only", nargs="*", default=list(WRITERS), choices=list(WRITERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", nargs=2, metavar=("NAME", "TARGET"), help="be one writer")
    parser.add_argument("--slow", action="store_true", help="that gives its killer time")
    given = parser.parse_args()
    if given.write:
        slow = {"slow": 0.02 * given.slow} if given.write[0] in ("embed_to_file", "shard_edges") else {}
        WRITERS[given.write[0]].write(Path(given.write[1]), lambda: None, **slow)
        return 0
    with tempfile.TemporaryDirectory() as cache:  # a killed process may leave half a program there
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_traceback_in_locations_limit", 0)  # exports hold the lines that made them
        return main(given.count, given.pairs, given.only, given.seed)


if __name__ == "__main__":
    sys.exit(command())
