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
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from experiments.common.mesh import variables, virtual
from experiments.common.options import command, one_a_layer, read
from experiments.common.runs import Job, task_of, train_job
from experiments.pod.config import Config
from experiments.pod.processes import together
from experiments.pod.programs import compile_programs, make_model, measure
from experiments.pod.tables import Source, make_tables, open_source
from jsage.data import lanes_of
from jsage.data.shards.layout import META
from jsage.parallel import Workload, estimate_memory, make_mesh
from jsage.recipes.plots import save_plots
from jsage.recipes.report import baseline, print_tables, summarize


def main(config: Config) -> dict:
    """Join the other processes, if any, and train; what `--json` writes."""
    if config.devices:
        virtual(config.devices // config.processes)
    alone = config.coordinator is None or config.dry_run
    with together(
        None if alone else config.coordinator, int(config.process), config.processes, config.timeout
    ):
        return train(config)


def train(config: Config) -> dict:
    """Say what each device will hold, place it, train `config.runs` models and test them."""
    source = open_source(config, config.devices or jax.device_count())
    items = memory_of_each_device(source, config)
    quiet = jax.process_index() != 0
    with contextlib.redirect_stdout(io.StringIO()) if quiet else contextlib.nullcontext():
        print_memory(source, items)
        check_memory(source, items, config)
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
    task = task_of(dataset, config)
    tables = tables._replace(labels=jnp.asarray(task.labels))
    capacities = measure(tables, config, mesh)
    print(f"ids for each owner at once, of {len(config.fanouts)} hops and of the features: {capacities}")
    programs = compile_programs(task, tables, capacities, config, mesh)
    train, val, test = (jnp.asarray(nodes) for nodes in (dataset.train, dataset.val, dataset.test))
    data = source.dataset or np.frombuffer((source.path / META).read_bytes(), np.uint8)
    job = Job(task, tables, train, tables, val, np.asarray(val), tables, np.asarray(test), data)
    found = train_job("GraphSAGE", programs, job, config)
    name, guess = baseline(task, np.asarray(dataset.train), np.asarray(dataset.test))
    scores = {"GraphSAGE": found.scores, name: [guess]}
    print_tables(task, dataset, scores, found.outputs)
    if config.out and jax.process_index() == 0:
        save_plots(Path(config.out), task, dataset, found.runs, found.outputs)
    result = summarize(config, task.metric, scores, found.runs, found.traces["epoch"])
    there = {"devices": mesh.size, "processes": jax.process_count(), "capacities": capacities, "bytes": items}
    return result | there


def memory_of_each_device(source: Source, config: Config) -> dict[str, int]:
    """Bytes of each device by item: `jsage.parallel.memory`, weights of edges and inference beside it."""
    placement, most = source.placement, max(source.edges)
    total, shards = sum(source.edges), placement.shards
    model = make_model(config, 1)
    shapes = jax.eval_shape(lambda: variables(model, config, source.width, jax.random.key(0)))
    load = Workload(
        placement.num_nodes,
        total,
        shards,
        source.width,
        itemsize=4,
        lanes=1 if config.devices else lanes_of(),
        uneven=most * shards / max(total, 1),
        num_cached=config.cache,
        seeds=-(-config.batch_size // shards),
        fanouts=config.fanouts,
        num_parameters=sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)),
    )
    weights = {"weights": 4 * most} if config.aggregator == "gcn" else {}
    return estimate_memory(load) | weights | {"inference": 8 * config.hidden * placement.rows}


def print_memory(source: Source, items: dict[str, int]) -> None:
    """What will lie where."""
    shards, place = source.placement.shards, source.placement
    title = f"{place.num_nodes:,} nodes and {sum(source.edges):,} edges on {shards} devices"
    table = Table("of each device", "bytes", title=title)
    for name, size in items.items():
        table.add_row(name, f"{size:,}")
    table.add_row("together", f"{sum(items.values()):,}", style="bold")
    Console(width=None if Console().is_terminal else 120).print(table)


def check_memory(source: Source, items: dict[str, int], config: Config) -> None:
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
    config = read(Config, arguments, "pod", __doc__)
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
