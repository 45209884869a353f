"""An artefact that is asked for nodes as of times: the sampler's rows, and nothing that came later."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsage.graph import from_edges, sort_by_time, up_to
from jsage.nn import GraphSAGE, SAGEConv
from jsage.sampling import ByNode, TimedNodes, sample_temporal_blocks
from jsage.serving import export, runtime

NODES, RNG = 10, np.random.default_rng(3)
PAIRS, TIME = RNG.integers(0, NODES, (80, 2)), RNG.integers(0, 50, 80)
X = RNG.normal(size=(NODES, 4)).astype(np.float32)
MODEL = GraphSAGE(5, 3, conv=partial(SAGEConv, edge="seconds"))
SAMPLER = partial(sample_temporal_blocks, draw=ByNode(), visible=up_to)
PLAN = export.Plan((3, 2), sizes=(), new_sizes=(), at_sizes=(4, 8), sampler_at=SAMPLER)
WHEN = RNG.integers(-1, 60, NODES)


def events(time=TIME, pairs=PAIRS):
    return sort_by_time(from_edges(*pairs.T, NODES, time=time))


def apply(variables, features, blocks):
    """Ages in another unit."""
    seconds = [block.edge_data["age"].astype(jnp.float32) / 60 for block in blocks]
    blocks = [b._replace(edge_data={"seconds": age}) for b, age in zip(blocks, seconds, strict=True)]
    return MODEL.apply(variables, features, blocks)


def tables(graph) -> dict[str, np.ndarray]:
    arrays = {"indptr": graph.indptr, "indices": graph.indices, "edge_time": graph.edge_data["time"]}
    return {name: np.asarray(values) for name, values in arrays.items()} | {"features": X}


@jax.jit
def sample(graph, when):
    seeds = TimedNodes(jnp.arange(NODES), jnp.asarray(when, jnp.int32))
    return SAMPLER(jax.random.key(PLAN.seed), graph, seeds, PLAN.fanouts)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path, graph = tmp_path_factory.mktemp("at") / "artefact", events()
    blocks = [b._replace(edge_data={"seconds": np.float32(b.edge_data["age"])}) for b in sample(graph, WHEN)]
    variables = jax.jit(MODEL.init)(jax.random.key(0), X, blocks)
    export.save(path, apply, variables, graph, X, PLAN)
    return runtime.load(path), variables


def test_rows_are_those_of_the_sampler_at_each_time_in_any_batch(exported):
    artefact, variables = exported
    embedder = artefact.place(tables(events()))
    got = embedder.embed_at(np.arange(NODES), WHEN)
    expected = jax.jit(lambda v, graph, when: apply(v, jnp.asarray(X), sample(graph, when)))(
        variables, events(), WHEN
    )
    np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_allclose(embedder.embed_at([7], WHEN[[7]]), got[[7]], atol=1e-6)
    days = embedder.embed_at(np.full(60, 3), np.arange(60))  # what did it look like on each day
    assert len(np.unique(days.round(4), axis=0)) > 5


def test_what_comes_later_is_not_read(exported):
    artefact, _ = exported
    late, now = TIME > 20, np.full(NODES, 20)
    pairs = np.where(late[:, None], PAIRS[:, ::-1], PAIRS)
    order = np.argsort(late, kind="stable")  # rows keep the order of the past
    others = events(np.where(late, 99, TIME)[order], pairs[order])
    placed = (artefact.place(tables(graph)) for graph in (events(), others))
    ours, theirs = (embedder.embed_at(np.arange(NODES), now) for embedder in placed)
    np.testing.assert_array_equal(ours, theirs)


def test_what_is_wrong_is_refused(exported, tmp_path):
    artefact, variables = exported
    embedder = artefact.place(tables(events()))
    for times, said in (
        ([1.5], "1 of int32, one a node, got float64"),
        ([2**31], "int32, got 2147483648"),
        ([], ""),
    ):
        with pytest.raises(ValueError, match=f"times must be {said}"):
            embedder.embed_at([3], times)
    with pytest.raises(ValueError, match="this artefact has no embed: "):
        embedder.embed([3])
    wrong = tables(events())
    row = int(np.argmax(np.diff(wrong["indptr"])))
    wrong["edge_time"] = wrong["edge_time"].copy()
    wrong["edge_time"][wrong["indptr"][row]] = 99
    with pytest.raises(ValueError, match=f"edge_time must ascend in each row, but does not in row {row}"):
        artefact.place(wrong)
    plain = from_edges(*PAIRS.T, NODES, time=TIME)
    with pytest.raises(ValueError, match="rows are in order of time, got a Graph"):
        export.save(tmp_path / "other", apply, variables, plain, X, PLAN)
