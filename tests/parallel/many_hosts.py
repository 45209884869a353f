"""One process of several that train together: `many_hosts.py FOLDER ADDRESS PROCESS PROCESSES [--resume]`.

FOLDER holds sharded graph directories `by_*`, of as many shards as there are devices. A few steps are made on
each, and what came out is written for the test to compare. Then, on one of them, comes a run to kill, which
prints each step once its checkpoint is written; `--resume` goes on with it, and does nothing else.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from experiments.pod.processes import together
from jsage.blocks import Tree
from jsage.data.shards import layout as directories
from jsage.graph import Location
from jsage.losses import cross_entropy, masked_mean
from jsage.nn import GraphSAGE
from jsage.parallel import (
    fetch,
    global_loss,
    loading,
    make_mesh,
    on_mesh,
    open_features,
    open_graph,
    open_nodes,
    replicate,
    sample_blocks,
    specs,
    split,
)
from jsage.sampling import epoch
from jsage.train import TrainState, checkpoint, init_state

CLASSES, FANOUTS, BATCH, FEATURES = 4, (3, 2), 16, 6
CAPACITY, EDGES, STEPS, KILLED, TIMEOUT, DEVICES = 2, 90, 4, 8, 10, 8
OPTIMIZER = optax.sgd(0.2, momentum=0.9)
TABLE = np.arange(48, dtype=np.float32).reshape(16, 3)
MODEL = GraphSAGE(hidden=5, out=CLASSES)


def start() -> TrainState:
    """The state before the first step."""
    rows = jnp.zeros((12 * BATCH, FEATURES))
    blocks = Tree(jnp.ones((4 * BATCH, FANOUTS[1]), bool)), Tree(jnp.ones((BATCH, FANOUTS[0]), bool))
    params = jax.jit(MODEL.init)(jax.random.key(2), rows, blocks)["params"]
    return init_state(jax.random.key(3), params, OPTIMIZER)


def scored(params, given):
    """The loss of `(rows, blocks, labels, mask)`, and its sums and rows."""
    rows, blocks, labels, mask = given
    scores = MODEL.apply({"params": params}, rows, blocks)
    losses = cross_entropy(scores, labels, mask)
    return masked_mean(losses, mask), (
        {"loss": losses.sum(), "weight": mask.sum().astype(jnp.float32)},
        scores,
    )


def advance(state, grads):
    """The next state."""
    updates, moments = OPTIMIZER.update(grads, state.opt_state, state.params)
    return state._replace(
        step=state.step + 1, params=optax.apply_updates(state.params, updates), opt_state=moments
    )


def step(state, graph, features, batch):
    """A step: the state, then the loss, the gradients and the sums, then the sampled ids and the rows."""
    seeds, labels, mask = batch
    key = jax.random.fold_in(state.key, state.step)
    ids, blocks, hops = sample_blocks(key, graph, seeds, FANOUTS, (CAPACITY,) * 2)
    rows, last = fetch(features, ids, CAPACITY)

    def loss(params, stats, batch, key):
        value, (sums, scores) = scored(params, batch)
        overflow = last.overflow + sum(hop.overflow for hop in hops)
        return value, (sums | {"overflow": overflow}, scores)

    run = jax.value_and_grad(global_loss(loss), has_aux=True)
    (value, (sums, scores)), grads = run(state.params, None, (rows, blocks, labels, mask), key)
    return advance(state, grads), {"loss": value, "grads": grads, "sums": sums}, (ids, scores)


def batches(nodes):
    """The batches of an epoch: positions among the training nodes, and which are valid."""
    return epoch(jax.random.key(4), jnp.arange(len(nodes)), BATCH)


def lay(path, mesh):
    """The state, the tables and the batches, each part on its device."""
    nodes = open_nodes(path, "train", mesh)
    (at, mask), labels = batches(nodes.ids), np.asarray(nodes.labels)
    owner, local = map(np.asarray, nodes.place)
    made = [(Location(owner[i], local[i]), labels[i], valid) for i, valid in zip(at, mask, strict=True)]
    return replicate(start(), mesh), (open_graph(path, mesh), open_features(path, mesh)), split(made, mesh)


def on(mesh, state, tables, batch):
    """The step on a mesh."""
    rows = PartitionSpec("data")
    out = specs(state), PartitionSpec(), (Location(rows, rows), rows)
    return jax.jit(on_mesh(step, mesh, (state, *tables, batch), out))


def values(tree):
    """Leaves by name, in NumPy."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


def prepare():
    """Note which shards are opened, and give all placements room for as many edges, to compile once."""
    opened, open_shard, open_shards = [], loading.open_shard, loading.open_shards
    loading.open_shard = lambda path, shard: (opened.append(shard), open_shard(path, shard))[1]
    loading.open_shards = lambda path: (found := open_shards(path))._replace(edges=(EDGES, *found.edges[1:]))
    return opened


def compare(folder, mesh):
    """A few steps on every directory."""
    opened, run, name = prepare(), None, f"{jax.process_index()}.npz"
    for path in sorted(folder.glob("by_*/")):
        opened.clear()
        state, tables, made = lay(path, mesh)
        run = run or on(mesh, state, tables, made[0])
        placement, found = directories.open_shards(path).placement, {}
        for i, batch in enumerate(made[:STEPS]):
            state, sums, (ids, scores) = run(state, *tables, batch)
            ids, scores = replicate((ids, scores), mesh)
            nodes = placement.nodes(np.asarray(ids.owner), np.asarray(ids.local))
            found[f"step{i}"] = {**sums, "nodes": nodes, "scores": scores}
        np.savez(folder / f"{path.name}-{name}", opened=opened, **values(found), **values(state.params))
    return run, state, tables, made


def read_more(folder, mesh, given, resume):
    """The run to kill, or what follows it; its last parameters are written."""
    run, state, tables, made = given
    table = split(TABLE, mesh)
    if resume:
        state, table = checkpoint.restore(folder / "checkpoints", (state, 0 * table))
    while (number := int(state.step)) < KILLED:
        state, *_ = run(state, *tables, made[number % len(made)])
        checkpoint.save(folder / "checkpoints", number + 1, (state, table))
        print("step", number + 1, flush=True)
    np.savez(folder / f"resumed-{jax.process_index()}.npz", **values(state.params))


def main(folder, address, process, processes, resume=None):
    """Everything, on two devices."""
    folder = Path(folder)
    jax.config.update("jax_num_cpu_devices", DEVICES // int(processes))
    with together(address, int(process), int(processes), TIMEOUT):
        mesh = make_mesh()
        if resume:
            prepare()
            state, tables, made = lay(folder / "by_hashed", mesh)
            read_more(folder, mesh, (on(mesh, state, tables, made[0]), state, tables, made), resume=True)
            return
        run, _, tables, made = compare(folder, mesh)  # the last directory is by_hashed
        state = replicate(start(), mesh)
        for number in range(KILLED):
            state, *_ = run(state, *tables, made[number % len(made)])
        np.savez(folder / f"whole-{process}.npz", **values(state.params))
        read_more(folder, mesh, (run, replicate(start(), mesh), tables, made), resume=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
