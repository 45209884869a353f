"""Train GraphSAGE on a mesh: features, edges and seeds split over the devices of one host or of many.

    python -m experiments.pod --devices 8                             # eight virtual devices of a CPU
    python -m experiments.pod --dataset pubmed.npz                    # all devices of a host, such as a v5e-8
    python -m experiments.pod --dataset SHARDED_DIR --coordinator HOST:PORT --process 0 --processes 4

The recipe, the task and the scores are those of `experiments.classify`; inference is exact, layer by layer on
the split tables. Run the same command on every host of a pod, with its own number; `--coordinator auto` on
Cloud TPU says it all. `--dry-run` prints what each device will hold, and places nothing.
"""

import contextlib
import dataclasses
import io
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from experiments import classify
from experiments.classify import Found
from experiments.fit import Splits, best, fit
from experiments.hosts import together
from experiments.learners import AGGREGATORS, NORMS
from experiments.options import command, one_a_layer, option, read, same
from experiments.pod_fit import compile_programs, make_model, measure, variables
from experiments.pod_tables import PLACEMENTS, Source, Tables, find, make_tables
from experiments.record import Record
from experiments.report import baseline, print_tables, save_plots, summarize
from experiments.tasks import TASKS, Task
from jsage.data import Dataset, lanes_of
from jsage.parallel import Load, bill, make_mesh

shared = partial(same, classify.Config)


@dataclass(frozen=True)
class Config:
    """Every option; the recipe is that of `experiments.classify`."""

    dataset: str = option("communities", "communities, an .npz file, a graph directory or a sharded one")
    placement: str = option("hashed", "which device owns a node; a sharded directory has its own")
    devices: int = option(0, "so many virtual devices of the CPU; 0: the devices that there are")
    cache: int = option(0, "rows of the most read nodes that every device has a copy of")
    coordinator: str | None = option(None, "HOST:PORT of process 0, or auto on Cloud TPU; none: one process")
    process: str = option("0", "the number of this process")
    processes: int = option(1, "how many processes there are")
    timeout: int = option(100, "seconds without a sign of a process before the others stop")
    memory: float = option(0.0, "GB of each device; 0: what it says itself, if it does")
    dry_run: bool = option(False, "print what each device would hold, and stop")
    aggregator: str = shared("aggregator")
    fanouts: tuple[int, ...] = shared("fanouts")
    batch_size: int = shared("batch_size", "seeds a step, of all devices together")
    hidden: int = shared("hidden")
    layers: int = shared("layers")
    epochs: int = shared("epochs")
    lr: float = shared("lr")
    weight_decay: float = shared("weight_decay")
    dropout: float = shared("dropout")
    norm: str = shared("norm")
    task: str | None = shared("task")
    labels: str = shared("labels")
    balanced: bool = shared("balanced")
    smoothing: float = shared("smoothing")
    patience: int = shared("patience")
    runs: int = shared("runs")
    out: str | None = shared("out", "folder for checkpoints, metrics.jsonl and plots, that all processes see")
    resume: bool = shared("resume", "go on with the runs in --out, on any number of devices")
    save_every: int = shared("save_every")
    json: str | None = shared("json")

    @property
    def common(self) -> classify.Config:
        """The options that `experiments.classify` has too."""
        names = {field.name for field in dataclasses.fields(self)} - {"json", "out"}
        both = names & {field.name for field in dataclasses.fields(classify.Config)}
        return classify.Config(**{name: getattr(self, name) for name in both})


def main(config: Config) -> dict:
    """Join the other processes, if any, and train; what `--json` writes."""
    if config.devices:
        virtual(config.devices // config.processes)
    alone = config.coordinator is None or config.dry_run
    with together(
        None if alone else config.coordinator, int(config.process), config.processes, config.timeout
    ):
        return train(config)


def virtual(devices: int) -> None:
    """Have a CPU count as so many devices; once jax has counted them it is too late."""
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", devices)


def train(config: Config) -> dict:
    """Say what each device will hold, place it, train `config.runs` models and test them."""
    source = find(config, config.devices or jax.device_count())
    items = reckon(source, config)
    quiet = jax.process_index() != 0
    with contextlib.redirect_stdout(io.StringIO()) if quiet else contextlib.nullcontext():
        print_bill(source, items)
        refuse(source, items, config)
        if config.dry_run:
            return {"dataset": config.dataset, "devices": source.placement.shards, "bytes": items}
        mesh = make_mesh()
        if config.devices and mesh.size != config.devices:
            raise ValueError(f"--devices {config.devices}, but jax has {mesh.size}: they are for a CPU alone")
        return learn(source, items, config, mesh)


def learn(source: Source, items: dict[str, int], config: Config, mesh: Mesh) -> dict:
    """The runs, their scores, and what they are measured against."""
    tables = make_tables(source, config, mesh)
    dataset = tables.splits.as_dataset()
    task = classify.task_of(dataset, config.common)
    tables = tables._replace(labels=jnp.asarray(task.labels))
    capacities = measure(tables, config, mesh)
    print(f"ids for each owner at once, of {len(config.fanouts)} hops and of the features: {capacities}")
    found = run_all(task, tables, dataset, (capacities, config, mesh))
    name, guess = baseline(task, np.asarray(dataset.train), np.asarray(dataset.test))
    scores = {"GraphSAGE": found.scores, name: [guess]}
    print_tables(task, dataset, scores, found.outputs)
    if config.out and jax.process_index() == 0:
        save_plots(Path(config.out), task, dataset, [run.history for run in found.runs], found.outputs)
    val = [best(run.history, task)[f"val_{task.metric}"] for run in found.runs]
    result = summarize(config, task.metric, scores, val, found.runs, found.traces["epoch"])
    there = {"devices": mesh.size, "processes": jax.process_count(), "capacities": capacities, "bytes": items}
    return result | there


def run_all(task: Task, tables: Tables, dataset: Dataset, given: tuple[tuple[int, ...], Any, Mesh]) -> Found:
    """Train with seeds `0 .. runs-1`, and test each."""
    capacities, config, mesh = given
    programs = compile_programs(task, tables, capacities, config, mesh)
    train, val, test = (jnp.asarray(nodes) for nodes in (dataset.train, dataset.val, dataset.test))
    read: Any = tables
    runs, scores, outputs = [], [], np.empty(0)
    for seed in range(config.runs):
        folder = Path(config.out) / f"graphsage-{seed}" if config.out else None
        with Record("GraphSAGE", seed, config, len(train), folder) as record:
            run = fit(programs, task, read, Splits(train, np.asarray(val), read, val), config, record)
        found, outputs = (
            np.asarray(programs.predict(run.params, run.stats, read, nodes)) for nodes in (val, test)
        )
        runs.append(run)
        scores.append(task.scores(outputs, np.asarray(test), task.threshold(found, np.asarray(val))))
    return Found(runs, scores, outputs, programs.traces)


def reckon(source: Source, config: Config) -> dict[str, int]:
    """Bytes of each device by item: `jsage.parallel.memory`, weights of edges and inference beside it."""
    placement, most = source.placement, max(source.edges)
    total, shards = sum(source.edges), placement.shards
    model = make_model(config, 1)
    shapes = jax.eval_shape(lambda: variables(model, config, source.width, jax.random.key(0)))
    load = Load(
        placement.num_nodes,
        total,
        shards,
        source.width,
        itemsize=4,
        lanes=1 if config.devices else lanes_of(),
        uneven=most * shards / max(total, 1),
        num_hot=config.cache,
        seeds=-(-config.batch_size // shards),
        fanouts=config.fanouts,
        num_parameters=sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)),
    )
    weights = {"weights": 4 * most} if config.aggregator == "gcn" else {}
    return bill(load) | weights | {"inference": 8 * config.hidden * placement.rows}


def print_bill(source: Source, items: dict[str, int]) -> None:
    """What will lie where."""
    shards, place = source.placement.shards, source.placement
    title = f"{place.num_nodes:,} nodes and {sum(source.edges):,} edges on {shards} devices"
    table = Table("of each device", "bytes", title=title)
    for name, size in items.items():
        table.add_row(name, f"{size:,}")
    table.add_row("together", f"{sum(items.values()):,}", style="bold")
    Console(width=None if Console().is_terminal else 120).print(table)


def refuse(source: Source, items: dict[str, int], config: Config) -> None:
    """Raise ValueError for what a device has no room for, where that is known."""
    room = int(config.memory * 1e9)
    if not room and not config.dry_run:
        room = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    if room and (needed := sum(items.values())) > room:
        raise ValueError(
            f"training needs {needed / 1e9:.3f} GB of each device, but it has {room / 1e9:.3f} GB: take more "
            f"devices than {source.placement.shards}, or a smaller --cache, --batch-size or --hidden"
        )


def parse(arguments: list[str] | None = None) -> Config:
    """Read the command line."""
    choices = {
        "aggregator": list(AGGREGATORS),
        "norm": list(NORMS),
        "task": list(TASKS),
        "placement": list(PLACEMENTS),
    }
    config = read(Config, choices, arguments, "pod", __doc__)
    if not config.process.isdecimal() or int(config.process) >= config.processes:
        raise ValueError(f"--process is a number below --processes {config.processes}, got {config.process}")
    if config.processes > 1 and config.coordinator is None:
        raise ValueError(f"--processes {config.processes} need the --coordinator where they meet: HOST:PORT")
    if config.devices % config.processes:
        raise ValueError(f"--devices {config.devices} must be a multiple of --processes {config.processes}")
    first = config.process == "0"
    fanouts = one_a_layer(config.fanouts, config.layers)
    return dataclasses.replace(config, fanouts=fanouts, json=config.json if first else None)


def run(arguments: list[str] | None = None) -> int:
    """The command: 0, or 2 and one line on standard error for bad input."""
    return command(main, partial(parse, arguments))


if __name__ == "__main__":
    sys.exit(run())
