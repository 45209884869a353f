"""Link prediction, run as its users run it on small graphs, and its parts against plain NumPy."""

import dataclasses
import json
from math import log
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_experiments import KEYS

from experiments.links import __main__ as links
from experiments.links import mesh as mesh_programs
from experiments.links.baselines import heuristics
from experiments.links.config import DECODERS, NEGATIVES, Config
from experiments.links.learners import MAKE_DECODER, Tables, draw_negatives, link_blocks
from experiments.links.problems import edge_problem, noise
from experiments.links.scores import rate
from jsage.data import Dataset
from jsage.graph import (
    Graph,
    add_self_loops,
    bipartite_graph,
    edges,
    from_edges,
    node_sides,
    sort_rows,
    symmetrize,
)
from jsage.parallel import local_share, make_mesh, replicate, split
from jsage.recipes.plots import node_colors
from jsage.sampling import LinkBatch, negatives

TINY = ("--fanouts", "4,4", "--hidden", "16", "--identity", "16", "--lr", "0.02", "--dropout", "0")
TINY += ("--batch-size", "128")


def random_graph(num_nodes: int, num_pairs: int, seed: int = 0) -> Graph:
    ends = np.random.default_rng(seed).integers(0, num_nodes, (2, num_pairs))
    return symmetrize(from_edges(*ends[:, ends[0] != ends[1]], num_nodes=num_nodes))


def write_communities(folder, *, times: bool) -> str:
    """90 nodes in three groups: links within a group; with times, events that come again and again."""
    rng = np.random.default_rng(0)
    group = np.arange(90) % 3
    src = rng.integers(0, 90, 900)
    dst = (src + 3 * rng.integers(1, 30, 900)) % 90
    arrays: dict[str, Any] = {"edge_index": np.stack([src, dst])}
    if times:
        pick = np.sort(rng.integers(0, 120, 900))
        arrays = {"edge_index": np.stack([src[pick], dst[pick]])[:, rng.permutation(900)]}
        arrays["edge_time"] = np.sort(rng.integers(0, 10_000, 900))
    else:
        arrays["x"] = (np.eye(3)[group] + 0.7 * rng.normal(size=(90, 3))).astype(np.float32)
    path = folder / "graph.npz"
    np.savez(path, meta=np.array(json.dumps({"nodes": 90})), **arrays)
    return str(path)


def run(*arguments: str, out) -> dict:
    assert links.run([*arguments, "--json", str(out / "result.json")]) == 0
    return json.loads((out / "result.json").read_text())


@pytest.mark.slow
def test_two_epochs_end_with_scores(tmp_path):
    path = write_communities(tmp_path, times=False)
    result = run("--dataset", path, *TINY, "--epochs", "2", out=tmp_path)
    assert result.keys() == KEYS | {"scores", "negatives_drawn"}
    assert (result["metric"], result["epochs"], result["traces"]) == ("auc", [2], 1)
    assert result["scores"]["GraphSAGE"].keys() == {"auc", "ap", "mrr", "hits@10", "hits@50"}
    assert result["test_mean"] > 0.5


@pytest.mark.slow
def test_links_within_groups_are_found(tmp_path, capsys):
    path = write_communities(tmp_path, times=False)
    result = run("--dataset", path, *TINY, "--epochs", "12", "--runs", "2", out=tmp_path)
    assert result.keys() == KEYS | {"scores", "negatives_drawn"}
    assert (result["metric"], result["runs"], result["traces"]) == ("auc", 2, 1)
    assert result["epochs"] == [12, 12]
    assert result["config"].keys() == {field.name for field in dataclasses.fields(Config)}
    assert result["test_mean"] > 0.75
    assert result["test_mean"] > result["baselines"]["preferential attachment"] + 0.1
    assert 0 < result["test_std"] < 0.1
    assert set(result["scores"]) == {"GraphSAGE", *result["baselines"]}
    assert all(0 <= score <= 1 for row in result["scores"].values() for score in row.values())
    assert result["scores"]["GraphSAGE"].keys() == {"auc", "ap", "mrr", "hits@10", "hits@50"}
    assert "Adamic-Adar" in capsys.readouterr().out


@pytest.mark.slow
def test_links_are_found_on_a_mesh(tmp_path):
    """The recipe, the split and the heuristics are those without; batches of 100 pairs are padded to 104."""
    path = write_communities(tmp_path, times=False)
    options = "--dataset", path, *TINY, "--fanouts", "6", "--decoder", "dot", "--batch-size", "100"
    result = run(*options, "--devices", "8", "--epochs", "8", out=tmp_path)
    assert result.keys() == KEYS | {"scores", "negatives_drawn"}
    assert (result["epochs"], result["traces"], result["config"]["devices"]) == ([8], 1, 8)
    assert "MLP (features only)" not in result["baselines"]
    assert result["test_mean"] > result["baselines"]["preferential attachment"] + 0.1
    assert result["test_mean"] > 0.75


def test_bad_input_is_one_line(tmp_path, capsys):
    (tmp_path / "times").mkdir()
    path, times = write_communities(tmp_path, times=False), write_communities(tmp_path / "times", times=True)
    for arguments, word in (
        (("--dataset", "missing.npz"), "missing.npz"),
        (("--dataset", path, "--by-time"), "edge times"),
        (("--dataset", path, "--test-negatives", "historical"), "historical needs edge times"),
        (("--dataset", path, "--devices", "9"), "--devices 9, but jax has 8"),
        (("--dataset", times, "--devices", "8"), "--devices needs features, and edges without times"),
    ):
        assert links.run(list(arguments)) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert word in error
    for arguments in (("--decoder", "guess"), ("--aggregator", "lstm"), ("--dropout", "1")):
        with pytest.raises(SystemExit) as stop:
            links.run(list(arguments))
        assert stop.value.code == 2


@pytest.mark.slow
@pytest.mark.parametrize("num_nodes", [30, 2000], ids=["all nodes draw", "seeds draw"])
def test_no_edge_of_the_batch_is_in_its_neighborhoods(num_nodes: int):
    graph = random_graph(num_nodes, 3 * num_nodes)
    src, dst = (ends[:12] for ends in edges(graph))
    mask = jnp.arange(12) < 10
    batch = LinkBatch(src, dst, src[:, None], mask)
    blocks, everyone = jax.jit(link_blocks, static_argnums=3)(jax.random.key(0), graph, batch, (3, 2))
    assert bool(everyone) == (num_nodes == 30)
    hidden = {tuple(pair) for pair in np.stack([src, dst], 1)[:10].tolist()}
    hidden |= {(v, u) for u, v in hidden}
    every = set(zip(*(ends.tolist() for ends in edges(graph)), strict=True))
    seen = set()
    for block in blocks if everyone else blocks[:1]:
        for node, row, valid in zip(block.dst.tolist(), block.src.tolist(), block.mask.tolist(), strict=True):
            seen |= {(source, node) for source, alive in zip(row, valid, strict=True) if alive}
    assert seen <= every - hidden
    assert len(seen) > 30  # something is left


@pytest.mark.slow
@pytest.mark.parametrize("name", NEGATIVES)
def test_no_valid_negative_is_an_edge_to_train_on(name: str):
    graph = random_graph(12, 60)
    known = sort_rows(add_self_loops(graph))
    sampler = negatives.by_degree(graph) if name == "degree" else negatives.uniform(12)
    tables = Tables(graph, known, None, None, sampler, jnp.zeros((1, 2), jnp.int32), None)
    config, src = Config(noise=name, negatives=5), jnp.arange(12).repeat(20)
    nodes, valid = jax.jit(draw_negatives, static_argnums=4)(jax.random.key(0), tables, src, src, config)
    one, other = jnp.split(nodes, 2, axis=1) if name == "pairs" else (src[:, None].repeat(5, 1), nodes)
    joined = np.zeros((12, 12), bool)
    joined[tuple(edges(known))] = True
    assert joined.mean() > 0.5  # most draws were wrong at first
    assert valid.mean() > 0.9
    assert not joined[np.asarray(one)[np.asarray(valid)], np.asarray(other)[np.asarray(valid)]].any()


def shop() -> Graph:
    """Five users, then four items."""
    users, items = np.array([(0, 0), (0, 1), (1, 0), (1, 2), (2, 0), (2, 3), (3, 0), (4, 1)]).T
    return bipartite_graph(users, items, num_users=5, num_items=4)


@pytest.mark.parametrize("name", NEGATIVES)
def test_negatives_of_training_join_a_user_and_an_item(name: str):
    graph, config = shop(), Config(noise=name, negatives=40)
    sampler = noise(graph, node_sides(graph), config)
    tables = Tables(graph, sort_rows(graph), None, None, sampler, jnp.zeros((1, 2), jnp.int32), None)
    src, dst = (jnp.asarray(ends) for ends in edges(graph))
    draw = jax.jit(draw_negatives, static_argnums=4)
    nodes, valid = (np.asarray(array) for array in draw(jax.random.key(0), tables, src, dst, config))
    one, other = np.split(nodes, 2, axis=1) if name == "pairs" else (np.asarray(src)[:, None], nodes)
    one, other = np.broadcast_arrays(one, other)
    assert ((one < 5) == (np.asarray(src) < 5)[:, None]).all()
    assert ((other < 5) == (np.asarray(dst) < 5)[:, None]).all()
    known = set(zip(src.tolist(), dst.tolist(), strict=True))
    assert not known & set(zip(one[valid].tolist(), other[valid].tolist(), strict=True))
    assert valid.mean() > 0.8


@pytest.mark.parametrize("name", ["pairs", "uniform"])
def test_sides_on_a_mesh_are_those_of_one_device(name: str):
    config, mesh = Config(noise=name, negatives=3), make_mesh()
    pairs = jnp.asarray(np.stack(edges(shop()), 1))
    given = *replicate((jax.random.key(1), negatives.by_side(node_sides(shop()))), mesh), split(pairs, mesh)

    def draw(key, sampler, pairs):
        near = mesh_programs.near(sampler, pairs, config)
        return local_share(key, near, (len(pairs), mesh_programs.width(config)))

    specs = jax.tree.map(lambda array: array.sharding.spec, given)
    found = jax.jit(jax.shard_map(draw, mesh=mesh, in_specs=specs, out_specs=specs[-1]))(*given)
    one = make_mesh(jax.devices()[:1])
    alone = jax.device_put(given, jax.sharding.NamedSharding(one, jax.sharding.PartitionSpec()))
    few = jax.jit(jax.shard_map(draw, mesh=one, in_specs=specs, out_specs=specs[-1]))(*alone)
    np.testing.assert_array_equal(found, few)
    like = np.concatenate([np.tile(pairs[:, :1], 3), np.tile(pairs[:, 1:], 3)], 1)[:, -found.shape[1] :]
    assert ((np.asarray(found) < 5) == (like < 5)).all()


def dataset_of(graph: Graph, types: Any = None) -> Dataset:
    ids = np.zeros(0, np.int32)
    return Dataset(graph, None, None, ids, ids, ids, types)


@pytest.mark.parametrize("kind", ["uniform", "destination"])
@pytest.mark.parametrize("types", [None, np.array([4] * 5 + [1] * 4)], ids=["two colors", "types"])
def test_negatives_of_evaluation_join_a_user_and_an_item(kind: str, types):
    problem = edge_problem(dataset_of(shop(), types), 0, Config(test_negatives=kind))
    for pairs in (problem.val, problem.test):
        sides = pairs.negative < 5
        assert (sides[:, 0] != sides[:, 1]).all()
        if kind == "destination":
            np.testing.assert_array_equal(pairs.negative[:, 0], pairs.positive[:, 0])
    assert ("both ends" in problem.drawn) == (kind == "uniform")
    assert ("types of nodes: 4, 5 nodes" in problem.drawn) == (types is not None)
    assert ("two colors" in problem.drawn) == (types is None)


def test_every_decoder_is_made():
    assert set(DECODERS) == MAKE_DECODER.keys()


def test_heuristics_are_those_of_sets():
    graph = random_graph(20, 60)
    near = {v: set() for v in range(20)}
    for u, v in zip(*(ends.tolist() for ends in edges(graph)), strict=True):
        near[v].add(u)
    pairs = np.stack(np.meshgrid(np.arange(20), np.arange(20)), -1).reshape(-1, 2)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    common = [near[u] & near[v] for u, v in pairs.tolist()]
    found = heuristics(add_self_loops(graph), pairs)
    expected = {
        "common neighbors": [len(nodes) for nodes in common],
        "Adamic-Adar": [sum(1 / log(len(near[w])) for w in nodes) for nodes in common],
        "resource allocation": [sum(1 / len(near[w]) for w in nodes) for nodes in common],
        "preferential attachment": [len(near[u]) * len(near[v]) for u, v in pairs.tolist()],
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-12, err_msg=name)


def test_ranks_are_among_all_negatives():
    found = rate(np.array([4.0, 2.0, 0.0]), np.array([3.0, 1.0, 1.0]), ranked=True)
    assert found["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 4) / 3)
    assert found["auc"] == pytest.approx((3 + 2 + 0) / 9)
    assert (found["hits@10"], found["hits@50"]) == (1, 1)  # fewer negatives than k
    few = rate(np.array([4.0, 2.0]), np.arange(12.0) / 4, ranked=True)
    assert few["hits@10"] == 1
    assert rate(np.array([0.3, 9.0]), np.arange(12.0), ranked=True)["hits@10"] == 0.5


def test_nodes_are_colored_by_class_or_by_degree():
    degree = np.array([0, 9, 99])
    assert node_colors(np.array([2, 0, 1]), degree)[0].tolist() == [2, 0, 1]
    assert node_colors(np.array([[False, True], [True, True], [False, False]]), degree)[0].tolist() == [
        1,
        0,
        0,
    ]
    for labels in (None, np.array([0.5, 1.0, 2.0])):
        np.testing.assert_allclose(node_colors(labels, degree)[0], [0, 1, 2])
