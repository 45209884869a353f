"""Training with the features on the host beside training with them on the device: seconds a step, and memory.

python -m benchmarks.host --graph graphs/products --json host.json

All forms run in turn on the same batches. Memory is measured in a process of its own for each form: what
memory that is no file's (RssAnon, RssShmem) rose by from when the tables were placed to its peak in training,
and how much of the feature file was mapped (clean pages of the system's cache, which it takes back whenever
it needs memory).
"""

import argparse
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from benchmarks.common import alternate, integers, parser, run, summary
from benchmarks.peers.process import ROOT, status_bytes
from benchmarks.step import Tables, num_classes
from jsage import data
from jsage.data import Dataset
from jsage.graph import Graph
from jsage.losses import cross_entropy, masked_mean
from jsage.nn import GraphSAGE
from jsage.sampling import (
    Labor,
    deduplicated_loss,
    epoch,
    fast_key,
    host_loader,
    measure_capacities,
    sample_blocks,
    without_replacement,
)
from jsage.train import TrainState, init_state, make_update, train_epoch
from jsage.typing import AnyDraw, HostArray


class Form(NamedTuple):
    """One way to train."""

    on_host: bool
    compact: bool
    together: int = 1
    """Steps a program, on the host; on the device all steps are one program."""
    resident_bytes: int | None = None
    """The most of the feature file that is mapped."""
    draw: AnyDraw = without_replacement


FORMS = {
    "device trees": Form(False, False),
    "device compacted": Form(False, True),
    "host trees": Form(True, False),
    "host compacted": Form(True, True),
    "host compacted, 2 together": Form(True, True, 2),
    "host compacted, 4 together": Form(True, True, 4),
    "host compacted, few pages": Form(True, True, 1, 2**26),
    "device compacted, labor": Form(False, True, draw=Labor()),
    "host compacted, labor": Form(True, True, draw=Labor()),
}
OPTIMIZER = optax.adam(0.003)


class Setup(NamedTuple):
    """What all forms share."""

    graph: Graph
    features: HostArray
    labels: Array
    model: GraphSAGE
    batches: tuple[Array, Array]
    capacities: Callable[[AnyDraw], tuple[int | None, ...]]


def main(options: argparse.Namespace) -> list[dict]:
    """One row a form, and its memory."""
    if options.memory:
        print(json.dumps(memory(options.memory, options)))
        return []
    dataset = data.open(options.graph)
    setup = prepare(dataset, options)
    trainers = {form: trainer(form, setup, options) for form in options.forms}
    times = alternate(trainers, options.repetitions)
    best = min(min(times[name]) for name in times if not FORMS[name].on_host)
    rows = []
    for form, seconds in times.items():
        rows.append({"form": form, "batch_size": options.batch_size, "fanouts": list(options.fanouts)})
        rows[-1] |= summary(seconds, options.steps) | {"ratio_to_device": min(seconds) / best}
        rows[-1]["rows_read"] = fmean(distinct_rows(form, setup, options))
        rows[-1]["loss_of_next_epoch"] = float(trainers[form]()["loss"])
        rows[-1] |= {} if options.time_only else ask_memory(form, options)
    return rows


def prepare(dataset: Dataset, options: argparse.Namespace) -> Setup:
    """The graph and the labels on the device, the batches and the capacities."""
    if dataset.features is None or dataset.labels is None:
        raise ValueError("training needs features and labels: make a graph with benchmarks.make_graph")
    graph, labels, train = jax.device_put((dataset.graph, dataset.labels, dataset.train))
    key = fast_key(1)
    capacities = partial(measure_capacities, key, graph, train, options.batch_size, options.fanouts)
    seeds, mask = epoch(key, train, options.batch_size)
    shape = options.steps, options.batch_size
    model = GraphSAGE(options.hidden, num_classes(dataset), num_layers=len(options.fanouts))
    return Setup(
        graph,
        dataset.features,
        labels,
        model,
        (jnp.resize(seeds, shape), jnp.resize(mask, shape)),
        lambda draw: capacities(draw=draw),
    )


def distinct_rows(form: str, setup: Setup, options: argparse.Namespace) -> list[int]:
    """How many rows of features each of four batches reads, each once."""
    draw = FORMS[form].draw

    @jax.jit
    def count(key, graph, seeds):
        first: Any = sample_blocks(key, graph, seeds, options.fanouts, draw=draw)[0]
        ids = jnp.sort(jnp.concatenate([first.dst, first.src.ravel()]))
        return 1 + (ids[1:] != ids[:-1]).sum()

    keys = jax.random.split(fast_key(2), 4)
    return [int(count(key, setup.graph, seeds)) for key, seeds in zip(keys, setup.batches[0], strict=False)]


def trainer(form: str, setup: Setup, options: argparse.Namespace) -> Callable[[], dict[str, Array]]:
    """A function that trains on all batches once more and returns the sums of the metrics."""
    on_host, compact, together, resident, draw = FORMS[form]
    capacities = setup.capacities(draw) if compact else None
    width = setup.features.shape[1]
    state = [jax.jit(partial(start, setup.model, options.fanouts, width))(setup.graph)]
    if on_host:
        sampler = host_loader.sampler(options.fanouts, capacities, draw=draw)
        rows = host_loader.measure_rows(sampler, state[0].key, setup.graph, setup.batches, together)
        loader = host_loader.Loader(sampler, setup.graph, setup.features, rows, resident_bytes=resident)
        update = jax.jit(partial(host_update, setup.model), donate_argnums=1)
        turn = partial(
            host_loader.train_epoch, partial(update, setup.labels), loader=loader, batches=setup.batches
        )
        turn = partial(turn, together=together)
    else:
        tables = Tables(setup.graph, jax.device_put(setup.features), setup.labels)
        sample = (options.fanouts, capacities, draw)
        scan = partial(device_epoch, setup.model, sample)
        turn = partial(jax.jit(scan, donate_argnums=0), tables=tables, batches=setup.batches)

    def train() -> dict[str, Array]:
        state[0], sums = turn(state=state[0])
        return sums

    return train


def start(model: GraphSAGE, fanouts: Sequence[int], width: int, graph: Graph) -> TrainState:
    """The same parameters for every form."""
    key = fast_key(0)
    blocks = sample_blocks(key, graph, jnp.zeros(1, jnp.int32), fanouts)
    params = model.init(key, jnp.zeros((1, width)), blocks)
    return init_state(jax.random.fold_in(key, 1), params, OPTIMIZER)


def host_update(model: GraphSAGE, labels: Array, state: TrainState, group: host_loader.BatchGroup) -> Any:
    """The steps of a group on rows that were fetched."""

    def loss_fn(params, stats, batch, key):
        value, sums = loss(model, batch.rows, labels, params, batch.blocks, batch.batch)
        return value, (sums, stats)

    return host_loader.scan_group(make_update(loss_fn, OPTIMIZER))(state, group)


def device_epoch(
    model: GraphSAGE,
    sample: tuple[Sequence[int], Sequence[int | None] | None, AnyDraw],
    state: TrainState,
    tables: Tables,
    batches: tuple[Array, Array],
) -> Any:
    """A scan of the same steps on a table on the device."""
    fanouts, capacities, draw = sample

    def on_blocks(params, stats, blocks, batch, key):
        value, sums = loss(model, tables.features, tables.labels, params, blocks, batch)
        return value, (sums, stats)

    def trees(params, stats, batch, key):
        blocks = sample_blocks(key, tables.graph, batch[0], fanouts, draw=draw)
        return on_blocks(params, stats, blocks, batch, key)

    loss_fn = trees
    if capacities is not None:
        loss_fn = deduplicated_loss(on_blocks, tables.graph, fanouts, capacities, draw=draw)
    return train_epoch(make_update(loss_fn, OPTIMIZER), state, batches)


def loss(model: GraphSAGE, rows: Array, labels: Array, params: Any, blocks: Any, batch: Any) -> Any:
    """What both sides compute, given rows and the blocks over them."""
    seeds, mask = batch
    logits: Any = model.apply(params, rows, blocks)
    losses = cross_entropy(logits, labels[seeds], mask)
    return masked_mean(losses, mask), {"loss": losses.sum(), "weight": mask.sum().astype(jnp.float32)}


def ask_memory(form: str, options: argparse.Namespace) -> dict:
    """What `memory` says in a process of its own."""
    sizes = {name: getattr(options, name) for name in ("batch_size", "hidden", "steps")}
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in sizes.items()]
    arguments += [f"--fanouts={','.join(map(str, options.fanouts))}", f"--memory={form}"]
    command = [sys.executable, "-m", "benchmarks.host", f"--graph={options.graph.resolve()}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {form!r} failed: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[0])


def memory(form: str, options: argparse.Namespace) -> dict:
    """What training in this form adds to what the process held with everything placed but no step run."""
    dataset = data.open(options.graph)
    setup = prepare(dataset, options)
    path = options.graph / "features.npy"
    before, mapped_before = private_bytes(), mapped_bytes(path)
    train = trainer(form, setup, options)
    peak, mapped, done = [before], [mapped_before], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], private_bytes())
            mapped[0] = max(mapped[0], mapped_bytes(path))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(3):
            jax.block_until_ready(train())
    finally:
        done.set()
        watcher.join()
    mapped[0] = max(mapped[0], mapped_bytes(path))  # the watcher may be too slow for a short run
    return {
        "features_bytes": setup.features.nbytes,
        "private_before_bytes": before,
        "private_growth_bytes": peak[0] - before,
        "mapped_features_bytes": mapped[0],
    }


def private_bytes() -> int:
    """Memory of this process that is no file's (Linux)."""
    return status_bytes("RssAnon", "RssShmem")


def mapped_bytes(path: Path) -> int:
    """How much of a file is mapped into this process at the moment (Linux)."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            inside = line.endswith(str(path.resolve()))
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


def options() -> argparse.ArgumentParser:
    made = parser("host", __doc__)
    made.add_argument("--batch-size", type=int, default=1024, help="seeds a batch (default: 1024)")
    made.add_argument("--fanouts", type=integers, default=(25, 10), help="the hop next to the seeds first")
    made.add_argument("--hidden", type=int, default=256, help="width of the hidden layers (default: 256)")
    made.add_argument("--steps", type=int, default=16, help="steps a call (default: 16)")
    made.add_argument("--repetitions", type=int, default=7, help="rounds that are timed (default: 7)")
    made.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="(default: all)")
    made.add_argument("--time-only", action="store_true", help="measure no memory")
    made.add_argument("--memory", choices=FORMS, help=argparse.SUPPRESS)
    return made


if __name__ == "__main__":
    sys.exit(run(options(), main))
