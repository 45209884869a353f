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
from experiments.links.baselines import edgebank, heuristics
from experiments.links.config import DECODERS, NEGATIVES, TEST_NEGATIVES, Config
from experiments.links.learners import MAKE_DECODER, Tables, draw_negatives, link_blocks, past_blocks
from experiments.links.problems import by_time, edge_problem, event_problem, noise
from experiments.links.problems import load as load_links
from experiments.links.scores import Pairs, rate
from jsage.data import Dataset, split_edges_by_time
from jsage.graph import (
    Graph,
    add_self_loops,
    bipartite_graph,
    edges,
    from_edges,
    node_sides,
    sort_by_time,
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


@pytest.mark.slow
def test_events_that_come_again_are_found(tmp_path):
    path = write_communities(tmp_path, times=True)
    options = ("--dataset", path, *TINY, "--epochs", "15", "--out", str(tmp_path / "out"))
    result = run(*options, out=tmp_path)
    assert result["traces"] == 1
    assert result["config"]["decoder"] == "bilinear"
    assert set(result["baselines"]) == {"EdgeBank", "EdgeBank, frozen"}
    assert result["test_mean"] > 0.75
    lines = (tmp_path / "out" / "graphsage-0" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 15
    assert (tmp_path / "out" / "graphsage-0" / "tsne.png").read_bytes().startswith(b"\x89PNG")
    best = max(json.loads(line)["val_auc"] for line in lines)
    assert result["val_mean"] == pytest.approx(best)


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


def events(num: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.integers(0, 12, (num, 2)), np.sort(rng.integers(0, 100, num))


def test_neighbors_are_the_latest_of_the_past():
    pairs, time = events()
    graph = sort_by_time(from_edges(*pairs.T, num_nodes=12, time=time))
    seeds, when = jnp.arange(12), jnp.asarray(np.random.default_rng(2).integers(0, 110, 12), jnp.int32)
    first, last = jax.jit(past_blocks, static_argnums=3)(graph, seeds, when, (3, 2))
    hops = first.dst.tolist()
    assert hops[:12] == seeds.tolist()
    times = np.concatenate([when, np.repeat(when, 3)])
    for node, at, row, valid in zip(hops, times, first.src.tolist(), first.mask.tolist(), strict=True):
        past = pairs[(pairs[:, 1] == node) & (time < at), 0][::-1][:2].tolist()
        assert [source for source, alive in zip(row, valid, strict=True) if alive] == past
    for i, (node, at) in enumerate(zip(seeds.tolist(), when.tolist(), strict=True)):
        past = pairs[(pairs[:, 1] == node) & (time < at), 0][::-1][:3].tolist()
        assert hops[12 + 3 * i :][: len(past)] == past
        assert last.mask[i].tolist() == [slot < len(past) for slot in range(3)]


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


@pytest.mark.parametrize("kind", TEST_NEGATIVES)
def test_negatives_of_events_are_what_the_line_says(kind: str):
    pairs, time = events()
    pairs = pairs * [1, 0] + [0, 12] + pairs[:, 1:] % 7 * [0, 1]  # from 12 nodes to 7 others; 3 are never met
    dataset = dataset_of(from_edges(*pairs.T, num_nodes=22, time=time))
    problem = event_problem(dataset, 0, Config(test_negatives=kind))
    every = {(*pair, at) for pair, at in zip(map(tuple, pairs.tolist()), time.tolist(), strict=True)}
    split = by_time(dataset.graph)
    earlier = {"val": split.train, "test": np.concatenate([split.train, split.val])}
    for name, part in (("val", problem.val), ("test", problem.test)):
        source, other = part.negative.T
        assert ((source < 12) & (other >= 12) & (other < 19)).all()
        if kind == "historical":
            met = set(map(tuple, earlier[name].tolist())) - set(map(tuple, part.positive.tolist()))
            assert set(map(tuple, part.negative.tolist())) <= met
            continue
        np.testing.assert_array_equal(source, part.positive[:, 0])
        when = np.asarray(part.time).tolist()
        assert not every & set(zip(source.tolist(), other.tolist(), when, strict=True))
    assert "12, 7, 3 nodes" in problem.drawn


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


def test_edgebank_remembers_event_by_event():
    pairs, time = events()
    split = split_edges_by_time(pairs[:, 0], pairs[:, 1], time, 12)
    wrong = np.random.default_rng(3).integers(0, 12, (len(split.test), 2)).astype(np.int32)
    found = edgebank(split, Pairs(split.test, wrong, split.test_time), 12)
    known = {tuple(pair) for part in (split.train, split.val) for pair in part.tolist()}
    frozen = [tuple(pair) in known for pair in np.concatenate([split.test, wrong]).tolist()]
    there, other = [], []
    for pair, negative_pair in zip(split.test.tolist(), wrong.tolist(), strict=True):
        there.append(tuple(pair) in known)
        other.append(tuple(negative_pair) in known)
        known.add(tuple(pair))
    np.testing.assert_array_equal(found["EdgeBank"], there + other)
    np.testing.assert_array_equal(found["EdgeBank, frozen"], frozen)
    assert 0 < np.mean(there) < 1


@pytest.mark.parametrize(
    ("name", "auc", "ap"),
    [("collegemsg", 0.8436, 0.8314), ("bitcoin_alpha", 0.4942, 0.5), ("temporal_enron", 0.894, 0.8308)],
)
def test_edgebank_scores_what_the_data_page_says(data_folder, name: str, auc: float, ap: float):
    """There any node is a destination, also one that the source has an event with at that time."""
    graph = load_links(Config(dataset=str(data_folder / f"{name}.npz")))[0].graph
    split, size = by_time(graph), len(by_time(graph).test)
    others = np.random.default_rng(0).integers(0, graph.num_nodes, size)
    wrong = np.stack([split.test[:, 0], others], 1).astype(np.int32)
    values = edgebank(split, Pairs(split.test, wrong, split.test_time), graph.num_nodes)["EdgeBank"]
    found = rate(values[:size], values[size:], ranked=False)
    assert found == pytest.approx({"auc": auc, "ap": ap}, abs=0.004)  # other draws of the negatives


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
