"""Exported artefacts: the same rows in any batch, after any refresh and without flax; damage is refused."""

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from jsage._internal.files import locked
from jsage.graph import Graph, from_edges
from jsage.nn import GraphSAGE, Pool, SAGEConv
from jsage.sampling import sample_blocks_by_node
from jsage.serving import export, runtime
from jsage.serving.runtime.files import META, checksum

NUM_NODES, WIDTH, NUM_NEW = 20, 5, 3
WHOLE = export.Plan(fanouts=(24, 24), sizes=(8,), new_sizes=(4,), new_edges=16)
SAMPLED = export.Plan((2, 3), sizes=(1, 4), new_sizes=(2,), new_edges=8, seed=5, about={"task": "none"})


def random_graph(seed: int = 0, num_nodes: int = NUM_NODES, num_edges: int = 60):
    random = np.random.default_rng(seed)
    src, dst = random.integers(0, num_nodes, (2, num_edges), np.int32)
    weight = random.uniform(0.5, 2.0, num_edges).astype(np.float32)
    features = random.normal(size=(num_nodes, WIDTH)).astype(np.float32)
    return (src, dst, weight), features


class Exported:
    """A model exported from a small random graph, and the artefact placed on that graph."""

    def __init__(self, path: Path, plan: export.Plan, *, weighted: bool, pool: bool = False) -> None:
        (self.src, self.dst, weight), self.features = random_graph()
        self.weight = weight if weighted else None
        self.graph = self.rebuilt(self.src, self.dst, self.weight)
        self.model = (
            GraphSAGE(hidden=6, out=3, conv=partial(SAGEConv, aggregate=Pool()))
            if pool
            else GraphSAGE(hidden=6, out=3)
        )
        self.plan, self.path = plan, path
        self.variables = reference.filled(
            jax.eval_shape(
                self.model.init, jax.random.key(0), jnp.asarray(self.features), self.blocks(self.graph, [0])
            )
        )
        self.name = "max pool" if pool else "mean"
        export.save(path, self.model.apply, self.variables, self.graph, self.features, plan)
        self.artefact = runtime.load(path)
        self.embedder = self.artefact.place(export.tables_of(self.graph, self.features))

    def rebuilt(self, src, dst, weight, num_nodes: int = NUM_NODES) -> Graph:
        return from_edges(src, dst, num_nodes, **({} if weight is None else {"weight": weight}))

    def blocks(self, graph: Graph, nodes):
        return sample_blocks_by_node(
            jax.random.key(self.plan.seed), graph, jnp.asarray(nodes), self.plan.fanouts
        )

    def direct(self, nodes, graph: Graph | None = None, features: Any = None) -> np.ndarray:
        """The model itself on its sampled blocks: all nodes of the graph, then those asked for."""
        graph, features = graph or self.graph, jnp.asarray(self.features if features is None else features)
        return np.asarray(self.run(self.variables, graph, features))[np.asarray(nodes)]

    @partial(jax.jit, static_argnums=0)
    def run(self, variables, graph, features):
        blocks = self.blocks(graph, jnp.arange(features.shape[0]))
        return self.model.apply(variables, features, blocks)

    def dense(self, src, dst, weight, features) -> np.ndarray:
        """Every node's row from whole neighborhoods, in float64."""
        hop = reference.edges(src, dst, len(features), weight)
        return reference.graphsage(
            reference.float64(self.variables), np.asarray(features, np.float64), [hop, hop], self.name
        )


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Exported:
    return Exported(tmp_path_factory.mktemp("whole") / "artefact", WHOLE, weighted=True, pool=True)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory) -> Exported:
    return Exported(tmp_path_factory.mktemp("sampled") / "artefact", SAMPLED, weighted=False)


def close(got, expected, error: float = 1e-5):
    """Equal, relative to the largest number there."""
    np.testing.assert_allclose(got, expected, rtol=error, atol=error * np.abs(expected).max())


def same(got, expected):
    close(got, expected, 1e-6)


class TestEmbed:
    @pytest.mark.slow
    def test_whole_neighborhoods_are_those_of_float64_numpy(self, whole):
        expected = whole.dense(whole.src, whole.dst, whole.weight, whole.features)
        close(whole.embedder.embed(np.arange(NUM_NODES)), expected)

    @pytest.mark.parametrize("count", [0, 1, 3, 8, 19])
    def test_any_number_of_nodes_gives_what_the_model_gives(self, sampled, count):
        nodes = np.random.default_rng(count).integers(0, NUM_NODES, count)
        found = sampled.embedder.embed(nodes)
        assert found.shape == (count, 3)
        assert found.dtype == np.float32
        if count:
            same(found, sampled.direct(nodes))

    def test_a_node_has_one_row_whatever_the_batch(self, sampled):
        rows = sampled.embedder.embed(np.arange(NUM_NODES))
        order = np.random.default_rng(1).permutation(NUM_NODES)
        np.testing.assert_array_equal(sampled.embedder.embed(order), rows[order])
        alone = np.concatenate([sampled.embedder.embed([node]) for node in range(NUM_NODES)])
        same(alone, rows)

    def test_another_seed_draws_other_neighbors(self, sampled):
        """Programs of both kinds are held to `direct`, which draws by the plan's seed."""
        blocks = sample_blocks_by_node(
            jax.random.key(0), sampled.graph, jnp.arange(NUM_NODES), sampled.plan.fanouts
        )
        other = sampled.model.apply(sampled.variables, jnp.asarray(sampled.features), blocks)
        assert np.abs(sampled.embedder.embed(np.arange(NUM_NODES)) - other).max() > 0.1

    def test_fanouts_below_the_degree_are_sampled(self, sampled):
        expected = sampled.dense(sampled.src, sampled.dst, None, sampled.features)
        assert np.abs(sampled.embedder.embed(np.arange(NUM_NODES)) - expected).max() > 0.1


def new_ends(*ends):
    """Edges of the rebuilt graph as a request has them: new node `i` is `-1 - i`."""
    return [np.where(np.asarray(each) < NUM_NODES, each, NUM_NODES - 1 - np.asarray(each)) for each in ends]


class TestEmbedNew:
    def new(self, seed=5, num_edges=30):
        """Random edges that touch new nodes, old ones at either end."""
        random = np.random.default_rng(seed)
        ends = np.stack(
            [
                random.integers(0, NUM_NODES + NUM_NEW, num_edges),
                random.integers(NUM_NODES, NUM_NODES + NUM_NEW, num_edges),
            ]
        )
        ends = np.where(random.uniform(size=num_edges) < 0.5, ends, ends[::-1])
        rows = random.normal(size=(NUM_NEW, WIDTH)).astype(np.float32)
        weight = random.uniform(0.5, 2.0, num_edges).astype(np.float32)
        return rows, *ends.astype(np.int32), weight

    def test_equals_the_graph_rebuilt_with_the_nodes_in_it(self, whole):
        rows, src, dst, weight = self.new()
        found = whole.embedder.embed_new(rows, *new_ends(src, dst), {"weight": weight})
        both = [np.concatenate(pair) for pair in ((whole.src, src), (whole.dst, dst))]
        weights = np.concatenate([whole.weight, weight])
        features = np.concatenate([whole.features, rows])
        close(found, whole.dense(*both, weights, features)[NUM_NODES:])

    def test_sampled_it_draws_what_the_rebuilt_graph_draws(self, sampled):
        rows = np.ones((2, WIDTH), np.float32)
        src, dst = [0, 1, 2, 3, NUM_NODES + 1, NUM_NODES], [*[NUM_NODES] * 5, 3]
        both = np.concatenate([sampled.src, src]), np.concatenate([sampled.dst, dst])
        graph = sampled.rebuilt(*both, None, NUM_NODES + 2)
        expected = sampled.direct([NUM_NODES, NUM_NODES + 1], graph, np.concatenate([sampled.features, rows]))
        same(sampled.embedder.embed_new(rows, *new_ends(src, dst)), expected)

    def test_a_node_without_edges(self, sampled):
        rows = np.ones((1, WIDTH), np.float32)
        graph = sampled.rebuilt(sampled.src, sampled.dst, None, NUM_NODES + 1)
        expected = sampled.direct([NUM_NODES], graph, np.concatenate([sampled.features, rows]))
        same(sampled.embedder.embed_new(rows, [], []), expected)

    @pytest.mark.parametrize(
        ("features", "src", "dst", "message"),
        [
            ([[1.0] * 4], [], [], r"features must be any x 5 numbers, got float64 of shape \[1, 4\]"),
            ([["a"] * 5], [], [], "features must be any x 5 numbers"),
            ([[float("nan")] * 5], [], [], "must be finite in float32"),
            ([[1e39] * 5], [], [], "must be finite in float32"),
            ([[1.0] * 5], [0], [20], r"dst must be node ids in 0 .. 19, or -1 .. -1 \(-1 - i is .* got 20"),
            ([[1.0] * 5], [-2], [-1], r"src must be node ids in 0 .. 19, or -1 .. -1 .* got -2"),
            ([[1.0] * 5], np.array([0.5]), [-1], "src must hold integers, got float64"),
            ([[1.0] * 5], np.array([2**70]), [-1], "src must hold integers, got object"),
            ([[1.0] * 5], [0, 1], [-1], "one entry an edge each, got 2 and 1"),
            ([[1.0] * 5], [0], [1], "must start or end at a new node, got 0 -> 1"),
            ([[1.0] * 5] * 3, [], [], "at most 2 new nodes with 16 edges a call, got 3 with 0"),
            ([[1.0] * 5], [0] * 17, [-1] * 17, "at most 2 new nodes with 16 edges a call, got 1 with 17"),
        ],
    )
    def test_says_what_is_wrong(self, sampled, features, src, dst, message):
        with pytest.raises(ValueError, match=message):
            sampled.embedder.embed_new(features, src, dst)

    def test_edge_data_must_be_that_of_the_graph(self, sampled):
        with pytest.raises(ValueError, match=r"edge_data must be absent, got \['edge_weight'\]"):
            sampled.embedder.embed_new([[1.0] * 5], [0], [-1], {"weight": [1.0]})


class TestRefresh:
    @pytest.mark.slow
    def test_a_larger_graph_needs_no_new_export(self, sampled):
        (src, dst, _), features = random_graph(seed=3, num_nodes=31, num_edges=90)
        graph, nodes = sampled.rebuilt(src, dst, None, 31), np.arange(31)
        before = sampled.artefact.compilations
        found = sampled.artefact.place(export.tables_of(graph, features)).embed(nodes)
        same(found, sampled.direct(nodes, graph, features))
        assert sampled.artefact.compilations == before + 3
        other = sampled.artefact.place(export.tables_of(graph, features + 1)).embed(nodes)
        assert np.abs(other - found).max() > 0.1
        assert sampled.artefact.compilations == before + 3

    @pytest.mark.slow
    def test_room_is_compiled_once_for_all_graphs_that_fit(self, sampled):
        before = sampled.artefact.compilations
        sizes = [(40, 128), (7, 0)]
        for num_nodes, num_edges in sizes:
            (src, dst, _), features = random_graph(2, num_nodes, num_edges)
            graph = sampled.rebuilt(src, dst, None, num_nodes)
            embedder = sampled.artefact.place(export.tables_of(graph, features), room=(40, 128))
            assert embedder.num_nodes == num_nodes
            nodes = np.arange(num_nodes)
            same(embedder.embed(nodes), sampled.direct(nodes, graph, features))
            if num_nodes != 7:
                continue
            rows = np.ones((1, WIDTH), np.float32)
            bigger = sampled.rebuilt(np.append(src, 3), np.append(dst, num_nodes), None, num_nodes + 1)
            expected = sampled.direct([num_nodes], bigger, np.concatenate([features, rows]))
            same(embedder.embed_new(rows, [3], [-1]), expected)
        assert sampled.artefact.compilations == before + 3
        with pytest.raises(ValueError, match="room is for 10 nodes and 128 edges, got 20 nodes and 60 edges"):
            sampled.artefact.place(export.tables_of(sampled.graph, sampled.features), room=(10, 128))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t.pop("features"), "tables must hold features, indices, indptr, got indices, indptr"),
            (lambda t: t.update(features=t["features"].astype(float)), r"must be float32 \[num_nodes, 5\]"),
            (lambda t: t.update(features=t["features"][:, :4]), r"= \[20, 5\], got float32 \[20, 4\]"),
            (lambda t: t.update(features=t["features"][:-1]), r"= \[20, 5\], got float32 \[19, 5\]"),
            (lambda t: t.update(features=t["features"] * np.inf), "features must be finite"),
            (
                lambda t: t.update(indices=t["indices"].astype(np.int64)),
                r"indices must be int32 \[num_edges\]",
            ),
            (
                lambda t: t.update(indices=t["indices"][:-1]),
                "indptr must rise from 0 to the number of edges, 59",
            ),
            (lambda t: t.update(indices=t["indices"] + 1), r"indices must be node ids in 0 .. 19, got 20"),
            (lambda t: t.update(indptr=t["indptr"][::-1].copy()), "without falling"),
        ],
    )
    def test_a_wrong_table_is_refused(self, sampled, change, message):
        wrong = {name: np.asarray(a) for name, a in export.tables_of(sampled.graph, sampled.features).items()}
        change(wrong)
        with pytest.raises(ValueError, match=message):
            sampled.artefact.place(wrong)

    @pytest.mark.parametrize(
        ("nodes", "message"),
        [
            ([0, 20], r"nodes must be node ids in 0 .. 19, got 20"),
            ([-1], r"got -1"),
            (np.array([0.0]), "nodes must hold integers, got float64"),
            (np.array([[1]]), r"nodes must have one axis, got shape \(1, 1\)"),
        ],
    )
    def test_a_wrong_node_is_refused(self, sampled, nodes, message):
        with pytest.raises(ValueError, match=message):
            sampled.embedder.embed(nodes)


ELSEWHERE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"flax", "optax", "orbax", "jsage", "jaxtyping", "rich"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
folder, given, result = sys.argv[1:]
sys.path.insert(0, folder)
import loader, numpy as np
tables = dict(np.load(given))
new = [tables.pop(name) for name in ("new", "src", "dst")]
embedder = loader.load(folder).place(tables)
np.savez(result, embed=embedder.embed(np.arange(embedder.num_nodes)), new=embedder.embed_new(*new))
"""


@pytest.mark.slow
def test_another_process_without_flax_gives_the_same_bits(sampled, tmp_path):
    new = {"new": np.ones((1, WIDTH), np.float32), "src": np.array([4]), "dst": np.array([-1])}
    np.savez(tmp_path / "given.npz", **export.tables_of(sampled.graph, sampled.features), **new)
    command = [
        sys.executable,
        "-I",
        "-c",
        ELSEWHERE,
        sampled.path,
        tmp_path / "given.npz",
        tmp_path / "out.npz",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "out.npz")
    np.testing.assert_array_equal(found["embed"], sampled.embedder.embed(np.arange(NUM_NODES)))
    np.testing.assert_array_equal(found["new"], sampled.embedder.embed_new(*new.values()))


class TestFiles:
    @pytest.fixture
    def copy(self, sampled, tmp_path) -> Path:
        return Path(shutil.copytree(sampled.path, tmp_path / "artefact"))

    def names(self, sampled):
        return sorted([META, *sampled.artefact.meta["files"]])

    def test_what_there_is(self, sampled):
        programs = ["embed-1", "embed-4", "embed_new-2"]
        loader = [
            f"loader/{name}.py" for name in ("__init__", "checks", "embedder", "files", "meta", "operations")
        ]
        expected = [*(f"{name}.exported" for name in programs), *loader, META, "params.npz"]
        assert self.names(sampled) == sorted(expected)
        assert {path.name for path in sampled.path.iterdir()} == {name.split("/")[0] for name in expected}
        meta = sampled.artefact.meta
        assert meta["fanouts"] == [2, 3]
        assert meta["platforms"] == ["cpu"]
        assert meta["about"] == {"task": "none"}
        assert meta["output"] == {"width": 3, "dtype": "float32"}
        assert meta["tables"]["indptr"] == {"shape": "num_nodes + 1", "dtype": "int32"}
        assert meta["versions"]["jax"] == jax.__version__
        assert {tuple(p.items()) for p in meta["params"]} >= {
            (("name", "params/convs_0/self/kernel"), ("shape", "5, 6"), ("dtype", "float32"))
        }

    def test_one_flipped_bit_anywhere_is_seen(self, sampled, copy):
        random = np.random.default_rng(0)
        for name in self.names(sampled):
            good = (copy / name).read_bytes()
            for position in random.integers(0, len(good), 5):
                bad = bytearray(good)
                bad[position] ^= 1
                (copy / name).write_bytes(bad)
                if name == META and json_equal(good, bad):
                    continue
                with pytest.raises(
                    ValueError, match=f"{Path(name).name}.*(corrupt|no jsage|version|truncated)"
                ):
                    runtime.load(copy)
            (copy / name).write_bytes(good)
        runtime.load(copy)

    def test_a_truncated_or_missing_file_is_seen(self, sampled, copy):
        for name in self.names(sampled):
            good = (copy / name).read_bytes()
            (copy / name).write_bytes(good[: len(good) // 2])
            with pytest.raises(ValueError, match=f"{Path(name).name} is (truncated|corrupt)"):
                runtime.load(copy)
            (copy / name).unlink()
            with pytest.raises(FileNotFoundError, match=f"{Path(name).name} is missing"):
                runtime.load(copy)
            (copy / name).write_bytes(good)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"version": 4}, "has version 4, but this loader reads 3: use a newer one"),
            ({"version": 2}, "has version 2, but this loader reads 3: export it again"),
            ({"format": "something"}, "is no jsage artefact's, but says 'something'"),
            (
                {"platforms": ["tpu"]},
                r"was exported for tpu, but jax runs on cpu here: .*platforms=\('cpu',\)",
            ),
        ],
    )
    def test_an_artefact_of_another_kind_is_refused(self, copy, change, message):
        rewrite(copy, lambda meta: meta.update(change))
        with pytest.raises(ValueError, match=message):
            runtime.load(copy)

    def test_a_newer_jax_is_refused(self, copy):
        replace(copy, lambda program: dataclasses.replace(program, calling_convention_version=99).serialize())
        with pytest.raises(ValueError, match=r"exported with jax .* \(convention 99\), but jax .* reads"):
            runtime.load(copy)

    def test_a_program_that_this_jax_cannot_read_names_both(self, copy):
        replace(copy, lambda program: bytes(64))
        with pytest.raises(ValueError, match=r"embed-1.exported was .* with jax .*, which jax .* cannot"):
            runtime.load(copy)

    def test_a_program_that_takes_something_else_is_refused(self, copy):
        other = exported_in(copy / "embed-4.exported")
        replace(copy, lambda program: other.serialize())
        with pytest.raises(ValueError, match=r"embed-1.exported is not the program that meta.json describes"):
            runtime.load(copy)

    def test_a_program_that_does_not_compile_names_both_jax(self, sampled, copy):
        module = exported_in(copy / "embed-4.exported").mlir_module_serialized
        replace(copy, lambda program: dataclasses.replace(program, mlir_module_serialized=module).serialize())
        with pytest.raises(ValueError, match=r"embed-1, exported with jax .* does not compile with jax"):
            runtime.load(copy).place(export.tables_of(sampled.graph, sampled.features))

    def test_without_flatbuffers_the_error_says_what_to_install(self, copy, monkeypatch):
        monkeypatch.delitem(sys.modules, "jax._src.export.serialization", raising=False)
        monkeypatch.setitem(sys.modules, "flatbuffers", None)
        with pytest.raises(ImportError, match="read by flatbuffers: pip install flatbuffers"):
            runtime.load(copy)


def exported_in(path: Path) -> jax.export.Exported:
    return jax.export.deserialize(bytearray(path.read_bytes()))


def replace(folder: Path, change) -> None:
    """Change what the first program's file holds, and make the checksums right."""
    path = folder / "embed-1.exported"
    path.write_bytes(data := bytes(change(exported_in(path))))
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    rewrite(folder, lambda meta: meta["files"].update({path.name: entry}))


def json_equal(one: bytes, other: bytes | bytearray) -> bool:
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


def rewrite(path: Path, change) -> None:
    """Change the metadata and make its checksum right."""
    meta = json.loads((path / META).read_text())["artefact"]
    change(meta)
    (path / META).write_text(json.dumps({"sha256": checksum(meta), "artefact": meta}))


class TestSave:
    def save(self, sampled, path, plan=SAMPLED, apply=None, features=None):
        features = sampled.features if features is None else features
        export.save(path, apply or sampled.model.apply, sampled.variables, sampled.graph, features, plan)

    def test_for_platforms_that_are_not_here(self, sampled, tmp_path):
        plan = SAMPLED._replace(platforms=("cpu", "cuda", "tpu"), sizes=(4,), new_sizes=())
        self.save(sampled, tmp_path / "all", plan)
        embedder = runtime.load(tmp_path / "all").place(export.tables_of(sampled.graph, sampled.features))
        nodes = np.arange(NUM_NODES)
        np.testing.assert_array_equal(embedder.embed(nodes), sampled.embedder.embed(nodes))

    @pytest.mark.slow
    def test_bfloat16_goes_there_and_back(self, sampled, tmp_path):
        features = jnp.asarray(sampled.features, jnp.bfloat16)
        half = {"scale": jnp.asarray(0.3, jnp.bfloat16)}
        plan = SAMPLED._replace(sizes=(4,), new_sizes=())
        apply = lambda variables, h, blocks: variables["scale"] * blocks[1].own(blocks[0].sum(h))  # noqa: E731
        export.save(tmp_path / "half", apply, half, sampled.graph, features, plan)
        embedder = runtime.load(tmp_path / "half").place(
            export.tables_of(sampled.graph, np.asarray(features))
        )
        found = embedder.embed([3, 1])
        expected = apply(half, features, sampled.blocks(sampled.graph, [3, 1]))
        assert found.dtype == jnp.bfloat16
        np.testing.assert_array_equal(found, np.asarray(expected))

    def test_is_there_whole_or_not_at_all(self, sampled, tmp_path):
        def broken(variables, h, blocks):
            raise RuntimeError("no")

        with pytest.raises(RuntimeError, match="no"):
            self.save(sampled, tmp_path / "one", apply=broken)
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(FileExistsError, match="exists already: remove it first"):
            self.save(sampled, sampled.path)

    def test_what_a_killed_save_left_is_removed_and_a_running_one_is_not_disturbed(self, sampled, tmp_path):
        (tmp_path / ".one.new" / "half").mkdir(parents=True)
        with locked(tmp_path / "one"), pytest.raises(BlockingIOError, match="one is being written already"):
            self.save(sampled, tmp_path / "one")
        self.save(sampled, tmp_path / "one", SAMPLED._replace(sizes=(1,), new_sizes=()))
        assert [path.name for path in tmp_path.iterdir()] == ["one"]
        assert not (tmp_path / "one" / "half").exists()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"fanouts": ()}, "must be positive numbers"),
            ({"sizes": (0,)}, "must be positive numbers"),
            ({"sizes": ()}, "sizes must name at least one batch size"),
            ({"platforms": ("gpu",)}, r"platforms must be some of cpu, cuda, rocm, tpu, got \('gpu',\)"),
        ],
    )
    def test_a_wrong_plan_is_refused(self, sampled, tmp_path, change, message):
        with pytest.raises(ValueError, match=message):
            self.save(sampled, tmp_path / "one", SAMPLED._replace(**change))

    @pytest.mark.slow
    def test_rows_are_refused_that_are_not_one_a_seed(self, sampled, tmp_path):
        with pytest.raises(ValueError, match=r"one row a seed, \[1, width\], got \[\(\)\]"):
            self.save(sampled, tmp_path / "one", apply=lambda variables, h, blocks: h.sum())
        with pytest.raises(ValueError, match=r"features must be one row a node, .* got shape \(100,\)"):
            self.save(sampled, tmp_path / "one", features=sampled.features.ravel())
