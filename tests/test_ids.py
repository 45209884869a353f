"""Ids: one rule in the same words at every door, and those out of range found inside compiled programs."""

import re
from functools import partial

import jax
import numpy as np
import pytest
from jax.experimental import checkify

import jsage
from jsage._internal import checks
from jsage.blocks import aggregate
from jsage.sampling import negatives
from jsage.serving.runtime.checks import check_nodes

N = 40
GRAPH = jsage.graph.symmetrize(jsage.from_edges(*np.random.default_rng(0).integers(0, N, (2, 160)), N))
X = np.random.default_rng(1).normal(size=(N, 6)).astype(np.float32)
SEEDS = np.array([[[0, N - 1], [1, 2]], [[3, 3], [N - 1, 0]]], np.int32)


@pytest.fixture(scope="module")
def run():
    """Two runs at once of gradients of a loss by drawn neighbors, step after step; and a look for edges."""

    def loss(table, seeds, key):
        block = jsage.sample_neighbors(key, GRAPH, seeds, 3)
        return (aggregate.mean(table, block) ** 2).sum()

    def epoch(batches, nodes):
        step = lambda table, batch: (table - 0.1 * jax.grad(loss)(table, *batch), None)  # noqa: E731
        return jax.lax.scan(step, X, batches)[0], jsage.graph.has_edge(GRAPH, nodes, nodes)

    # With vmap outside: jax's checks do not read batched scatters and loops.
    return jax.jit(jax.vmap(checkify.checkify(epoch, errors=checkify.index_checks), (0, None)))


@pytest.mark.parametrize(
    ("at", "bad", "node", "fine"),
    [
        (0, 0, 1, True),
        (1, N, 1, False),
        (6, -1, 1, False),
        (5, 10**6, 1, False),
        (0, 0, N, False),
        (0, 0, -3, False),
    ],
)
def test_ids_out_of_range_are_found_by_checkify(run, at, bad, node, fine):
    """Under jit, scan, vmap and grad; nothing is found where all are legal, padded slots included."""
    seeds = SEEDS.copy()
    seeds.flat[at] = bad
    keys = jax.random.split(jax.random.key(0), (2, 2))
    error, _ = run((seeds, keys), np.array([node, 2], np.int32))
    said = error.get()
    assert (said is None) == fine, said
    if not fine:
        with pytest.raises(checkify.JaxRuntimeError, match="out-of-bounds indexing for array of shape"):
            error.throw()


@pytest.mark.parametrize("ids", [np.ones(3, bool), np.ones(3, np.float32)], ids=lambda ids: str(ids.dtype))
def test_what_are_no_ids_is_refused_in_the_same_words(ids):
    """As TypeError where the function may be traced, ValueError on the host."""
    said = checks.no_integers(ids.dtype, "nodes")
    assert said is not None
    for error, call in (
        (TypeError, lambda: jax.eval_shape(partial(checks.as_ids, name="nodes"), ids)),
        (ValueError, lambda: jsage.graph.hide_nodes(GRAPH, ids)),
        (ValueError, lambda: negatives.by_degree(GRAPH, nodes=ids)),
        (ValueError, lambda: jsage.embed_all(jsage.GraphSAGE(3, 2), None, GRAPH, X, nodes=ids)),
    ):
        with pytest.raises(error, match=re.escape(said)):
            call()
    with pytest.raises(ValueError, match=re.escape(said.split(":")[0])):
        check_nodes(ids, N)


@pytest.mark.parametrize("bad", [N, -1])
def test_ids_out_of_range_are_refused_in_the_same_words(bad, tmp_path):
    model, ids = jsage.GraphSAGE(3, 2), np.array([0, bad])
    to_file = jsage.infer.StreamOptions(nodes=ids)
    said = f"nodes must be node ids in 0 .. {N - 1}, got {bad}"
    for call in (
        lambda: check_nodes(ids, N),
        lambda: jsage.graph.hide_nodes(GRAPH, ids),
        lambda: negatives.by_degree(GRAPH, nodes=ids),
        lambda: jsage.embed_all(model, None, GRAPH, X, nodes=ids),
        lambda: jsage.embed_to_file(str(tmp_path / "x.npy"), model, None, GRAPH, X, to_file),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(said)}(\n|$)"):
            call()
    splits = np.arange(N) % 2, ids, np.array([1]), np.array([2])
    with pytest.raises(ValueError, match=re.escape(said.replace("nodes must", "train must"))):
        jsage.data.validate_dataset(jsage.Dataset(GRAPH, X, *splits))
