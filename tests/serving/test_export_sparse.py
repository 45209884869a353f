"""Exports of models that read sparse features: the rows of the same model on the dense table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsage.graph import Graph, from_edges, sparse_rows
from jsage.nn import GraphSAGE
from jsage.sampling import full_block, sample_blocks_by_node
from jsage.serving import export, runtime

NODES, WIDTH, EDGES = 30, 40, 90
PLAN = export.Plan((3, 2), sizes=(2, 8), new_sizes=(1, 2), new_edges=4, new_words=5, platforms=("cpu", "tpu"))
RNG = np.random.default_rng(0)
TABLE = np.where(RNG.random((NODES, WIDTH)) < 0.1, RNG.normal(size=(NODES, WIDTH)), 0).astype(np.float32)
TABLE[3] = 0
GRAPH = from_edges(*RNG.integers(0, NODES, (2, EDGES)), NODES)
NEW = np.zeros((2, WIDTH), np.float32)
NEW[0, [1, 7]], NEW[1, 39] = [2.0, -1.0], 3.0
MODEL = GraphSAGE(hidden=6, out=3)


@pytest.fixture(scope="module")
def variables():
    blocks = (full_block(GRAPH),) * 2
    return jax.jit(MODEL.init)(jax.random.key(1), TABLE, blocks)


@pytest.fixture(scope="module")
def artefact(tmp_path_factory, variables) -> runtime.Artifact:
    path = tmp_path_factory.mktemp("sparse") / "artefact"
    export.save(path, MODEL.apply, variables, GRAPH, sparse_rows(TABLE), PLAN)
    return runtime.load(path)


def given(table: np.ndarray = TABLE) -> dict[str, np.ndarray]:
    return {name: np.asarray(a) for name, a in export.tables_of(GRAPH, sparse_rows(table)).items()}


@jax.jit
def every(variables, graph: Graph, features):
    seeds = jnp.arange(features.shape[0])
    return MODEL.apply(
        variables, features, sample_blocks_by_node(jax.random.key(0), graph, seeds, PLAN.fanouts)
    )


def test_known_and_new_nodes_have_the_rows_of_the_dense_table(artefact, variables):
    embedder = artefact.place(given())
    expected = every(variables, GRAPH, jnp.asarray(TABLE))
    np.testing.assert_allclose(embedder.embed(np.arange(NODES)), expected, rtol=1e-5, atol=1e-6)
    src, dst = np.array([4, -1, -2, 9]), np.array([-1, -2, 5, -1])
    ends = (np.where(ids < 0, NODES - 1 - ids, ids) for ids in (src, dst))
    old = np.repeat(np.arange(NODES), np.diff(GRAPH.indptr))
    both = (np.append(one, two) for one, two in zip((GRAPH.indices, old), ends, strict=True))
    rebuilt = from_edges(*both, NODES + 2)
    expected = every(variables, rebuilt, jnp.asarray(np.concatenate([TABLE, NEW])))[NODES:]
    np.testing.assert_allclose(embedder.embed_new(NEW, src, dst), expected, rtol=1e-5, atol=1e-6)
    alone = embedder.embed_new(NEW[:1], [4], [-1])
    assert np.abs(alone - embedder.embed_new(2 * NEW[:1], [4], [-1])).max() > 0.01


def test_a_table_with_other_words_that_fits_the_room_compiles_nothing(artefact, variables):
    words = int(np.count_nonzero(TABLE))
    artefact.place(given(), (NODES, EDGES, words + 7))
    before = artefact.compilations
    table = TABLE.copy()
    table[3, :7] = 1.0
    found = artefact.place(given(table), (NODES, EDGES, words + 7)).embed(np.arange(NODES))
    np.testing.assert_allclose(found, every(variables, GRAPH, jnp.asarray(table)), rtol=1e-5, atol=1e-6)
    assert artefact.compilations == before
    table[3, 7] = 1.0
    told = (
        f"room is for 30 nodes and 90 edges and {words + 7} words, got 30 nodes and 90 edges and {words + 8}"
    )
    with pytest.raises(ValueError, match=told):
        artefact.place(given(table), (NODES, EDGES, words + 7))


def test_more_words_than_the_program_takes_are_refused(artefact):
    embedder = artefact.place(given())
    full = np.ones((1, WIDTH), np.float32)
    with pytest.raises(ValueError, match="at most 10 features that are not 0 a call, got 40"):
        embedder.embed_new(full, [], [])
    full[0, 10:] = 0
    assert embedder.embed_new(full, [], []).shape == (1, 3)  # more than one row's room


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("features_indices", WIDTH, r"features_indices must be columns in 0 \.\. 39, got 40"),
        ("features_start", -1, "must name some of the [0-9]+ words"),
        ("features_length", 10**6, "must name some of the [0-9]+ words"),
        ("features_length", -1, "must name some of the [0-9]+ words"),
        ("features_values", np.nan, "features_values must be finite"),
    ],
)
def test_words_that_are_none_are_refused(artefact, name, value, message):
    tables = given()
    tables[name] = tables[name].copy()
    tables[name][5] = value
    with pytest.raises(ValueError, match=message):
        artefact.place(tables)


def test_a_dense_table_is_refused(artefact):
    with pytest.raises(
        ValueError, match=r"tables must hold features_indices, features_length, .* got features,"
    ):
        artefact.place(export.tables_of(GRAPH, TABLE))
