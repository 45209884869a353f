"""Several real processes, each with its own shards: the numbers of one device; one is killed, all go on."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import many_hosts
import numpy as np
import pytest
from many_hosts import (
    BATCH,
    CLASSES,
    DEVICES,
    FANOUTS,
    FEATURES,
    KILLED,
    STEPS,
    TABLE,
    advance,
    batches,
    scored,
)

import jsage
from experiments.pod.processes import LOST
from jsage.blocks import as_tree
from jsage.data import power_law_communities, shard_dataset
from jsage.graph import balanced, contiguous, hashed
from jsage.parallel import make_mesh, split
from jsage.sampling import sample_blocks_by_node
from jsage.train import checkpoint

pytestmark = pytest.mark.slow
NODES, PROCESSES = 90, 4
NAMES = ("balanced", "contiguous", "hashed")
ROOT = Path(jsage.__file__).parents[1]


@pytest.fixture(scope="module")
def dataset():
    return power_law_communities(NODES, 400, num_classes=CLASSES, num_features=FEATURES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, dataset):
    """Directories of all placements over eight shards, of as many rows; and one over two."""
    folder, degrees = tmp_path_factory.mktemp("hosts"), np.diff(np.asarray(dataset.graph.indptr))
    shard_dataset(folder / "by_contiguous", dataset, contiguous(NODES, DEVICES))
    shard_dataset(folder / "by_hashed", dataset, hashed(NODES, DEVICES))
    shard_dataset(folder / "by_balanced", dataset, balanced(degrees, DEVICES, node_cost=10))
    shard_dataset(folder / "two", dataset, hashed(NODES, 2))
    return folder


def launch(folder, processes, *options):
    """Real processes that meet on the loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    script = Path(__file__).with_name("many_hosts.py")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, script, folder, address]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    numbers = [(str(i), str(processes)) for i in range(processes)]
    return [subprocess.Popen([*command, *pair, *options], **pipes) for pair in numbers]


@pytest.fixture(scope="module")
def killed(folder):
    """Comparisons, then a run whose process 2 gets SIGKILL: each one's status and errors, and how soon."""
    children = launch(folder, PROCESSES)
    try:
        for line in children[2].stdout:
            if line == "step 3\n":
                break
        children[2].kill()
        began = time.monotonic()
        ends = [(child.wait(60), child.communicate()[1]) for child in children]
        seconds = time.monotonic() - began
        shutil.copytree(folder / "checkpoints", folder / "killed")
        return ends, seconds
    finally:
        for child in children:
            child.kill()


@pytest.fixture(scope="module")
def alone(dataset):
    """The same steps on one device, with jsage's own samplers: what each gave, and the last parameters."""

    @jax.jit
    def step(state, dataset, seeds, mask):
        key = jax.random.fold_in(state.key, state.step)
        blocks = sample_blocks_by_node(key, dataset.graph, seeds, FANOUTS)
        given = dataset.features, blocks, dataset.labels[seeds], mask
        (loss, (sums, scores)), grads = jax.value_and_grad(scored, has_aux=True)(state.params, given)
        told = {"loss": loss, "grads": grads, "sums": sums, "nodes": as_tree(blocks[0])[0], "scores": scores}
        return advance(state, grads), told

    state, found = many_hosts.start(), {}
    train = np.sort(np.asarray(dataset.train))
    made = [(train[at], mask) for at, mask in zip(*map(np.asarray, batches(train)), strict=True)]
    for i, (seeds, mask) in enumerate(made[:STEPS]):
        state, found[f"step{i}"] = step(state, dataset, seeds, mask)
    return many_hosts.values(found), many_hosts.values(state.params)


def by_device(nodes):
    """The ids of a batch's tree as the devices hold them, each those of its own seeds."""
    parts = []
    for at in np.split(np.arange(BATCH), DEVICES):
        size = BATCH
        for fanout in FANOUTS:
            drawn = size + fanout * at[:, None] + np.arange(fanout)
            at, size = np.concatenate([at, drawn.ravel()]), size * (1 + fanout)
        parts.append(nodes[at])
    return np.concatenate(parts)


@pytest.mark.parametrize("name", NAMES)
def test_processes_together_compute_what_one_device_does(folder, killed, alone, name):
    found, params = alone
    for process in range(PROCESSES):
        told = np.load(folder / f"by_{name}-{process}.npz")
        for path, expected in {**found, **params}.items():
            if "nodes" in path:
                np.testing.assert_array_equal(told[path], by_device(expected))
            else:
                np.testing.assert_allclose(told[path], expected, rtol=1e-5, atol=1e-5)
        assert told["['step0']['sums']['overflow']"] > 0
        assert set(told["opened"]) == {2 * process, 2 * process + 1}, "its own shards alone"


def test_a_killed_process_stops_the_others_soon_and_they_say_why(killed):
    ends, seconds = killed
    assert seconds < 30
    assert ends[2][0] == -signal.SIGKILL
    for status, error in ends[:2] + ends[3:]:
        assert status == LOST, error
        assert "another process of this run is gone, so this one stops too" in error
        assert "Start all of them again with --resume" in error


def test_the_rest_of_a_killed_run_on_the_same_mesh_gives_the_same_bits(folder, killed):
    done = checkpoint.latest_step(folder / "checkpoints")
    assert 3 <= done < KILLED
    children = launch(folder, 2, "--resume")
    out = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0, 0], out
    assert f"step {done + 1}\n" in out[0][0]
    whole = np.load(folder / "whole-0.npz")
    for process in range(2):
        resumed = np.load(folder / f"resumed-{process}.npz")
        for path in whole.files:
            np.testing.assert_array_equal(resumed[path], whole[path])


def test_the_rest_of_a_killed_run_on_a_smaller_mesh_ends_with_the_same_parameters(folder, killed):
    mesh = make_mesh(jax.devices()[:2])
    state, tables, made = many_hosts.lay(folder / "two", mesh)
    like = split(0 * TABLE, mesh)
    state, table = checkpoint.restore(folder / "killed", (state, like))
    assert int(state.step) < KILLED
    assert table.sharding == like.sharding
    np.testing.assert_array_equal(table, TABLE)
    run = many_hosts.on(mesh, state, tables, made[0])
    while (number := int(state.step)) < KILLED:
        state, *_ = run(state, *tables, made[number % len(made)])
    whole = np.load(folder / "whole-0.npz")
    for path, value in many_hosts.values(state.params).items():
        np.testing.assert_allclose(value, whole[path], rtol=1e-6, atol=1e-6)
