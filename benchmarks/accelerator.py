"""What this device does, GPU, TPU or CPU: sampling, training steps, a whole graph, exact inference.

    python -m benchmarks.accelerator --json accelerator.json
    python -m benchmarks.accelerator --sizes arxiv --torch-python PYTHON --json accelerator.json

Graphs of the sizes of ogbn-arxiv and ogbn-products are made once, in `--folder`. `ratio_to_floor` compares a
row with the least that the same device needs: its matmuls at the rate of one of that shape alone, its random
rows at the rate of reading random rows of the same table, its random bits (`benchmarks.train` says more).
PYTHON is an interpreter with torch, which takes turns with us on the same device: the step written by hand
(`benchmarks/peers/torch_step.py`), and with torch_geometric its full batch and its loader-fed step.
"""

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from benchmarks import convolutions, train
from benchmarks.common import alternate, integers, run, summary, temp_bytes
from benchmarks.make_graph import SIZES, make
from benchmarks.peers.process import Worker
from benchmarks.step import Tables, num_classes, place
from jsage import data
from jsage.blocks import sliced_full_block
from jsage.infer import embed_all
from jsage.losses import cross_entropy, masked_mean
from jsage.nn import GraphSAGE

FORMS = ("trees", "compacted")
PEERS = ("compiled", "eager", "full_batch", "loader")
MODULE = "benchmarks.peers.torch_step"


def main(options: argparse.Namespace) -> list[dict]:
    """The rows of every size."""
    return [{"size": size, **row} for size in options.sizes for row in of_size(size, options)]


def of_size(size: str, options: argparse.Namespace) -> list[dict]:
    """Sampling and steps, then the whole graph, then PyTorch's."""
    folder = options.graph / size
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        data.save(folder, make(SIZES[size]))
    options = argparse.Namespace(**vars(options) | {"graph": folder, "forms": FORMS})
    rows = steps(options) + whole(options)
    return rows + (peers(options) if options.torch_python else [])


def steps(options: argparse.Namespace) -> list[dict]:
    """A row of sampling and a row of the step for each form, of the mean; and the step of GATv2."""
    found = []
    given = {"fanouts": [options.fanouts], "aggregators": ["mean"], "dtypes": [options.dtype]}
    steps_of_epoch = -(-len(data.open(options.graph).train) // options.batch_size)
    for row in train.main(argparse.Namespace(**vars(options) | given)):
        form, seconds = row["form"], row["seconds_min"]
        found.append({"part": "sampling", "form": form, **row["sampling"]})
        kept = ("seconds_min", "seconds_median", "ratio_to_floor", "floor_seconds", "temp_bytes")
        found.append({"part": "step", "convolution": "mean", "form": form, **{k: row[k] for k in kept}})
        found[-1]["epochs_per_second"] = 1 / (seconds * steps_of_epoch)
    attention = argparse.Namespace(**vars(options), convolutions=["gatv2"])
    rows = [row for row in convolutions.main(attention) if row["convolution"] == "gatv2"]
    kept = ("convolution", "form", "seconds_min", "seconds_median", "ratio_to_mean_median", "temp_bytes")
    for row in rows:
        found.append({"part": "step", **{k: row[k] for k in kept}})
        found[-1]["epochs_per_second"] = 1 / (row["seconds_min"] * steps_of_epoch)
    return found


def whole(options: argparse.Namespace) -> list[dict]:
    """Full batch, forward and backward, and exact inference of every node, in turn."""
    dataset = data.open(options.graph)
    tables = place(dataset, None if options.dtype == "float32" else options.dtype)
    widths = (tables.features.shape[1], options.hidden, num_classes(dataset))
    calls, temporaries = whole_calls(tables, jnp.asarray(dataset.train), widths)
    times = alternate(calls, options.repetitions)
    rates, rows = train.Rates(tables), []
    for part, passes in (("full_batch", 2), ("embed_all", 1)):
        floor = floor_seconds(rates, tables, widths, passes)
        row = {"part": part, **summary(times[part]), "floor_seconds": floor}
        rows.append(row | {"ratio_to_floor": row["seconds_min"] / floor})
        rows[-1] |= {"temp_bytes": temporaries[part]} if part in temporaries else {}
    return rows


def whole_calls(
    tables: Tables, seeds: Array, widths: tuple[int, ...]
) -> tuple[dict[str, Callable[[], Any]], dict[str, int]]:
    """A training step on the whole graph in degree classes, and every node's row layer by layer."""
    model = GraphSAGE(widths[1], widths[-1], num_layers=len(widths) - 1)
    block = sliced_full_block(jax.tree.map(np.asarray, tables.graph))
    blocks = (block,) * (len(widths) - 1)
    params = jax.jit(model.init)(jax.random.key(0), tables.features, blocks)
    optimizer = optax.adam(0.003)

    def step(params, state, tables, blocks, seeds):
        def loss(params):
            logits: Any = model.apply(params, tables.features, blocks)
            valid = jnp.ones(len(seeds), bool)
            return masked_mean(cross_entropy(logits[seeds], tables.labels[seeds], valid), valid)

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    given = params, optimizer.init(params), tables, blocks, seeds
    compiled = jax.jit(step).lower(*given).compile()
    every = partial(embed_all, model, params, tables.graph, tables.features)
    return {"full_batch": partial(compiled, *given), "embed_all": every}, {"full_batch": temp_bytes(compiled)}


def floor_seconds(rates: train.Rates, tables: Tables, widths: tuple[int, ...], passes: int) -> float:
    """Each edge's row once a layer, and again in the gradient but for the features'; the matmuls."""
    nodes, size, seconds = tables.graph.num_nodes, tables.features.dtype.itemsize, 0.0
    for layer, (before, after) in enumerate(pairwise(widths)):
        reads = 1 if layer == 0 else passes
        seconds += reads * tables.graph.num_edges * min(before, after) * size / rates.bytes
        shape = (min(nodes, 8192), before, after)
        rate = train.matmul_rate(*shape, dtype=tables.features.dtype)
        times = 1 if passes == 1 else 2 if layer == 0 else 3
        seconds += 2 * times * 2 * nodes * before * after / rate
    return seconds


def peers(options: argparse.Namespace) -> list[dict]:
    """PyTorch on the same device; what cannot be run there has a row that says why."""
    sizes = {name: getattr(options, name) for name in ("fanouts", "batch_size", "hidden", "steps")}
    folder = [str(options.graph.resolve())]
    environment = {**os.environ} | ({"CUDA_VISIBLE_DEVICES": ""} if jax.default_backend() == "cpu" else {})
    try:
        with Worker(options.torch_python, MODULE, folder, environment) as worker:
            said = worker.request({})
            return [peer(worker, form, said, {**sizes, "form": form}, options) for form in PEERS]
    except (OSError, RuntimeError) as error:
        return [{"part": "torch", "form": form, "not_run": str(error)} for form in PEERS]


def peer(worker: Worker, form: str, said: dict, request: dict, options: argparse.Namespace) -> dict:
    row = {"part": "torch", "form": form, "device": said["device"], "versions": said["versions"]}
    answers = [worker.request(request) for _ in range(1 + options.repetitions)]
    failed = next((answer["error"] for answer in answers if "error" in answer), None)
    if failed:
        return {**row, "not_run": failed}
    per = 1 if form == "full_batch" else options.steps
    return {**row, **summary([answer["seconds"] for answer in answers[1:]], per)}


def options() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.accelerator", description=(__doc__ or "").split("\n")[0]
    )
    made.add_argument(
        "--sizes", nargs="+", choices=list(SIZES), default=["arxiv", "products"], help="of graphs"
    )
    made.add_argument(
        "--folder", dest="graph", type=Path, default=Path("graphs"), help="where graphs are made and kept"
    )
    made.add_argument("--torch-python", help="an interpreter that has torch")
    made.add_argument("--fanouts", type=integers, default=(25, 10), help="25,10 unless given")
    made.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    made.add_argument("--batch-size", type=int, default=1024, help="seeds a step (default: 1024)")
    made.add_argument("--hidden", type=int, default=256, help="width of the hidden layers (default: 256)")
    made.add_argument("--steps", type=int, default=16, help="steps a scan (default: 16)")
    made.add_argument("--repetitions", type=int, default=5, help="rounds that are timed (default: 5)")
    made.add_argument("--json", metavar="FILE", help="write the result there; - is standard output")
    return made


if __name__ == "__main__":
    sys.exit(run(options(), main))
