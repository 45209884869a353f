"""HeteroConv: each relation's convolution by NumPy, joined; sampled as whole; padding never read."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsage import aggregate
from jsage.graph import from_edges, typed_graph
from jsage.nn import (
    Dense,
    GATConv,
    GATv2Conv,
    HeteroConv,
    PinSAGEConv,
    Pool,
    SAGEConv,
    TransformerConv,
)
from jsage.sampling import clip_fanouts, fast_key, sample_blocks, sample_typed_blocks, typed_full_block

SIZES, WIDTHS = {"a": 12, "b": 5, "c": 6, "none": 0}, {"a": 3, "b": 4, "c": 2, "none": 3}
RELATIONS = [
    ("a", "to", "b"),
    ("b", "back", "a"),
    ("a", "likes", "a"),
    ("c", "in", "a"),
    ("none", "lost", "b"),
]


def random_edges() -> dict:
    rng = np.random.default_rng(0)
    counts = [0 if "none" in relation else 40 for relation in RELATIONS]
    return {
        (s, r, d): (rng.integers(0, max(SIZES[s], 1), n), rng.integers(0, SIZES[d], n))
        for (s, r, d), n in zip(RELATIONS, counts, strict=True)
    }


EDGES = random_edges()
GRAPH = typed_graph(
    SIZES, EDGES, edge_data={r: {"age": np.ones((len(e[0]), 2), np.float32)} for r, e in EDGES.items()}
)
TABLES = {
    name: np.random.default_rng(i).normal(size=(SIZES[name], width)).astype(np.float32)
    for i, (name, width) in enumerate(WIDTHS.items())
}
FULL = typed_full_block(GRAPH)
CONVS = {
    "sage": partial(SAGEConv, 8),
    "sage max": partial(SAGEConv, 8, aggregate=aggregate.max),
    "sage pool": partial(SAGEConv, 8, aggregate=Pool()),
    "sage edge": partial(SAGEConv, 8, edge="age"),
    "gat": partial(GATConv, 8, heads=2, own=False, share=False),
    "gatv2": partial(GATv2Conv, 8, heads=2, own=False, share=False),
    "transformer": partial(TransformerConv, 8, heads=2),
    "pinsage": partial(PinSAGEConv, 8),
}
REFERENCES = {
    "sum": lambda rows: np.sum(rows, 0),
    "mean": lambda rows: np.mean(rows, 0),
    "min": lambda rows: np.min(rows, 0),
    "max": lambda rows: np.max(rows, 0),
    "concat": lambda rows: np.concatenate(rows, 1),
}


class Two(nn.Module):
    """Two layers, types that nothing points at through a dense one."""

    conv: str

    def setup(self) -> None:
        layer = partial(HeteroConv, lambda relation: CONVS[self.conv])
        self.layers = [layer(own=partial(Dense, 8)), layer(targets=("a", "b"))]

    def __call__(self, h, blocks):
        for layer, block in zip(self.layers, blocks, strict=True):
            h = {name: jax.nn.silu(rows) for name, rows in layer(h, block).items()}
        return h


def mean_rows(relation: tuple, table: np.ndarray) -> np.ndarray:
    src, dst = EDGES[relation]
    total = np.zeros((SIZES[relation[2]], table.shape[1]))
    np.add.at(total, dst, table[src].astype(np.float64))
    return total / np.maximum(np.bincount(dst, minlength=len(total)), 1)[:, None]


@pytest.mark.parametrize("combine", REFERENCES)
def test_each_relation_has_its_own_parameters_and_results_are_joined(combine: str):
    layer = HeteroConv(lambda relation: CONVS["sage"], combine)
    out, variables = jax.jit(layer.init_with_output)(fast_key(0), TABLES, FULL)
    params = jax.tree.map(np.float64, variables["params"])
    assert params.keys() == {"__".join(relation) for relation in RELATIONS}
    wanted: dict[str, list] = {}
    for relation in sorted(RELATIONS):
        source, _, target = relation
        p = params["__".join(relation)]
        rows = mean_rows(relation, TABLES[source]) @ p["neigh"]["kernel"]
        wanted.setdefault(target, []).append(rows + TABLES[target] @ p["self"]["kernel"] + p["bias"])
    assert out.keys() == wanted.keys() == {"a", "b"}
    for name, rows in wanted.items():
        np.testing.assert_allclose(out[name], REFERENCES[combine](rows), atol=2e-6)


def whole(seeds: dict):
    """Two hops of at least as many neighbors as any node has, and which rows the first layer reads."""
    fanouts = clip_fanouts(GRAPH, (1000, 1000))
    batch = jax.jit(partial(sample_typed_blocks, fanouts=fanouts))(fast_key(0), GRAPH, seeds)
    block = batch.blocks[0]
    read = {name: [np.ones(len(ids), bool)] for name, ids in block.dst.items()}
    for relation in sorted(block.blocks):
        read.setdefault(relation[0], []).append(np.asarray(block.blocks[relation].mask).ravel())
    return batch, {name: np.concatenate(parts) for name, parts in read.items()}


@pytest.mark.parametrize("conv", CONVS)
def test_samples_of_whole_neighborhoods_give_what_the_whole_graph_gives(conv: str):
    model, seeds = Two(conv), {"a": np.array([11, 0, 3], np.int32), "b": np.array([4], np.int32)}
    batch, read = whole(seeds)
    params = jax.jit(model.init)(fast_key(1), TABLES, (FULL, FULL))

    def of_sample(params, tables, poison):
        rows = {name: jnp.where(read[name][:, None], x, poison) for name, x in batch.read(tables).items()}
        out = model.apply(params, rows, batch.blocks)
        return sum((x**2).sum() for x in out.values()), out

    def of_graph(params, tables):
        out = model.apply(params, tables, (FULL, FULL))
        out = {name: out[name][ids] for name, ids in seeds.items()}
        return sum((x**2).sum() for x in out.values()), out

    d_wanted, wanted = jax.jit(jax.grad(of_graph, (0, 1), has_aux=True))(params, TABLES)
    d_found, found = jax.jit(jax.grad(of_sample, (0, 1), has_aux=True))(params, TABLES, np.float32(np.nan))
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, found, wanted)
    jax.tree.map(partial(close, rtol=1e-4), d_found, d_wanted)


def test_one_relation_is_the_convolution_itself_to_the_bit():
    src, dst = np.random.default_rng(1).integers(0, 30, (2, 200))
    table, seeds = (
        np.random.default_rng(2).normal(size=(30, 5)).astype(np.float32),
        np.arange(4, dtype=np.int32),
    )
    typed, plain = typed_graph({"n": 30}, {("n", "r", "n"): (src, dst)}), from_edges(src, dst, 30)
    batch = jax.jit(partial(sample_typed_blocks, fanouts=(3,)))(fast_key(0), typed, {"n": seeds})
    (block,) = jax.jit(partial(sample_blocks, fanouts=(3,)))(fast_key(0), plain, seeds)
    layer, conv = HeteroConv(lambda relation: CONVS["sage"]), CONVS["sage"]()
    rows = jax.jit(batch.read)({"n": table})
    out, variables = jax.jit(layer.init_with_output)(fast_key(1), rows, batch.blocks[0])
    params = {"params": variables["params"]["n__r__n"]}
    np.testing.assert_array_equal(out["n"], jax.jit(conv.apply)(params, table, block))


def test_a_layer_of_targets_and_of_own_rows():
    layer = partial(HeteroConv, lambda relation: CONVS["sage"])
    shapes = lambda layer: jax.eval_shape(layer.init_with_output, fast_key(0), TABLES, FULL)  # noqa: E731
    out, variables = shapes(layer(targets=("b",)))
    assert out.keys() == {"b"}
    assert variables["params"].keys() == {"a__to__b", "none__lost__b"}
    out, variables = shapes(layer(own=partial(Dense, 8)))
    assert {name: rows.shape for name, rows in out.items()} == {name: (n, 8) for name, n in SIZES.items()}
    assert variables["params"]["c"]["kernel"].shape == (2, 8)
    out, _ = shapes(layer(targets=("a", "c"), own=partial(Dense, 8)))
    assert out.keys() == {"a", "c"}


def test_errors():
    init = lambda layer, h: jax.eval_shape(layer.init, fast_key(0), h, FULL)  # noqa: E731
    with pytest.raises(ValueError, match=r"combine must be one of .*'concat'.* got 'median'"):
        init(HeteroConv(lambda relation: CONVS["sage"], "median"), TABLES)
    tables = {name: rows for name, rows in TABLES.items() if name != "c"}
    with pytest.raises(ValueError, match=r"relation \('c', 'in', 'a'\) reads rows of type 'c'"):
        init(HeteroConv(lambda relation: CONVS["sage"]), tables)
