"""Seconds of an epoch and peak memory with sparse features and with the same ones dense, taking turns.

    python -m benchmarks.sparse_features --files flickr_attr.npz,coauthor_cs.npz --json sparse.json
    python -m benchmarks.sparse_features --made 1000000,100000,30 --sparse --json words.json

Each form runs in a process of its own, one after the other. `peak_bytes` is the most that it held while it
trained, features and graph included, above what it held before it read them; `compile_peak_bytes` the most
with what reading and compiling took. An epoch is `--steps` steps of 512 seeds with (10, 10) neighbors, SAGE
layers, 64 hidden columns, dropout 0.5, Adam; the best of `--epochs` is reported. `--made` makes a graph of so
many nodes, words and words a node, ten edges a node; `--full-batch` trains on the whole graph at once.
"""

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.common import machine, peak_rss_bytes, reset_peak_rss, versions
from experiments.common.output import write_json
from jsage import GraphSAGE, data, from_edges, init_state, make_update, sample_blocks, train_epoch
from jsage.blocks import sliced_full_block
from jsage.graph import SparseRows
from jsage.losses import cross_entropy, masked_mean
from jsage.sampling import epoch

SEEDS, FANOUTS, HIDDEN = 512, (10, 10), 64


def main(options: argparse.Namespace) -> list[dict]:
    """A row for each data set, with the figures of both forms."""
    rows = []
    for name in options.made or options.files:
        row: dict[str, Any] = {"data": Path(name).stem, "full_batch": options.full_batch}
        for form in ("sparse",) if options.sparse else ("dense", "sparse"):
            row[form] = apart(name, form, options)
        if "dense" in row:
            row["times_faster"] = row["dense"]["seconds"] / row["sparse"]["seconds"]
            row["share_of_table"] = row["sparse"]["peak_bytes"] / row["dense"]["table_bytes"]
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def apart(name: str, form: str, options: argparse.Namespace) -> dict:
    """`measure` in a process of its own."""
    flags = ["--full-batch"] * options.full_batch + ["--worker", name, form]
    command = [sys.executable, "-m", "benchmarks.sparse_features", *flags]
    command += ["--steps", str(options.steps), "--epochs", str(options.epochs)]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        raise RuntimeError(f"{name}, {form}: {found.stderr[-2000:]}")
    return json.loads(found.stdout.splitlines()[-1])


def measure(name: str, form: str, options: argparse.Namespace) -> dict:
    """Seconds of the best epoch, bytes above those held at first, and the loss after all epochs."""
    little: Any = made("600,50,3")  # what compiling holds is no matter of the data
    little = little._replace(features=little.features if form == "sparse" else little.features.toarray())
    trained(jax.device_put(little), options)
    reset_peak_rss()
    before = peak_rss_bytes()
    dataset = made(name) if "," in name else data.load_npz(name, sparse=form == "sparse")
    features: Any = dataset.features
    words = features.values.size if form == "sparse" else int((np.asarray(features) != 0).sum())
    held = sum(x.nbytes for x in jax.tree.leaves(features))
    compiled, (seconds, losses) = trained(jax.device_put(dataset), options)
    return {
        "seconds": min(seconds),
        "peak_bytes": peak_rss_bytes() - before,
        "compile_peak_bytes": compiled - before,
        "features_bytes": held,
        "table_bytes": 4 * features.shape[0] * features.shape[1],
        "words": words,
        "nodes": dataset.graph.num_nodes,
        "steps": 1 if options.full_batch else options.steps,
        "loss": losses[-1],
    }


def trained(dataset: Any, options: argparse.Namespace) -> tuple[int, tuple[list[float], list[float]]]:
    """The peak of compiling; the seconds of all epochs but the first, and their losses."""
    graph, features, labels, train, *_ = dataset
    model = GraphSAGE(hidden=HIDDEN, out=int(np.asarray(labels).max()) + 1, dropout=0.5)
    full = (sliced_full_block(graph),) * 2 if options.full_batch else None

    def loss_fn(params, stats, batch, key):
        (seeds, mask), (graph, features, labels, full) = batch, tables
        draw, drop = jax.random.split(key)
        blocks = sample_blocks(draw, graph, seeds, FANOUTS) if full is None else full
        out: Any = model.apply(params, features, blocks, deterministic=False, rngs={"dropout": drop})
        out = out if full is None else out[seeds]
        loss = masked_mean(cross_entropy(out, labels[seeds], mask), mask)
        return loss, ({"loss": loss}, stats)

    tables = graph, features, labels, full
    key, optimizer = jax.random.key(0), optax.adam(0.01)
    size = train.shape[0] if options.full_batch else min(SEEDS, train.shape[0])
    shape = (1 if options.full_batch else options.steps, size)
    seeds, mask = (jnp.resize(x, shape) for x in epoch(key, train, size))
    params = model.init(key, features, sample_blocks(key, graph, seeds[0, :1], FANOUTS))
    state = init_state(key, params, optimizer)

    @jax.jit
    def run(state, given, seeds, mask):
        nonlocal tables
        tables = given
        return train_epoch(make_update(loss_fn, optimizer), state, (seeds, mask))

    given, seconds, losses = (graph, features, labels, full), [], []
    call = run.lower(state, given, seeds, mask).compile()
    peak = peak_rss_bytes()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what compiling used and freed
    reset_peak_rss()
    for _ in range(options.epochs + 1):
        began = time.perf_counter()
        state, sums = jax.block_until_ready(call(state, given, seeds, mask))
        seconds.append(time.perf_counter() - began)
        losses.append(float(jnp.mean(sums["loss"])))
    return peak, (seconds[1:], losses)


def made(sizes: str) -> data.Dataset:
    """A graph of so many nodes with classes that their words tell, some to a row, and ten edges a node."""
    nodes, columns, words = map(int, sizes.split(","))
    rng, labels = np.random.default_rng(0), np.arange(nodes) % 10
    start = np.arange(nodes, dtype=np.int32) * words
    indices = rng.integers(0, columns // 10, nodes * words, np.int32) * 10
    told = rng.random(nodes * words) < 0.2
    indices += np.where(told, np.repeat(labels, words), rng.integers(0, 10, nodes * words)).astype(np.int32)
    values, none = np.ones(nodes * words, np.float32), np.zeros((columns, 0), np.float32)
    features = SparseRows(start, np.full(nodes, words, np.int32), indices, values, none)
    src, dst = rng.integers(0, nodes, (2, 10 * nodes), np.int32)
    graph = from_edges(src, dst, nodes)
    ids = rng.permutation(nodes).astype(np.int32)
    cut = nodes // 2
    return data.Dataset(graph, features, labels.astype(np.int32), ids[:cut], ids[cut:-10], ids[-10:])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sparse_features", description=__doc__)
    parser.add_argument("--files", type=lambda text: text.split(","), default=[], help="cora.npz,...")
    parser.add_argument("--made", action="append", help="nodes,words,words a node")
    parser.add_argument("--sparse", action="store_true", help="the sparse form alone")
    parser.add_argument("--full-batch", action="store_true")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--worker", nargs=2, metavar=("DATA", "FORM"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        name, form = given.worker
        print(json.dumps(measure(name, form, given)))
    else:
        about = {"benchmark": "sparse_features", "machine": machine(), "versions": versions()}
        write_json({**about, "rows": main(given)}, given.json)
