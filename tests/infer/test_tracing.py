"""Layers whose reductions depend on one another, on every path of exact inference; and what is refused."""

from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from helpers import features
from jax.sharding import PartitionSpec

from jsage import GraphSAGE, aggregate, embed_all, embed_new, parallel
from jsage.blocks.reductions import MAX, SOFTMAX_SUM, SUM, Reduction, weighted_source
from jsage.graph import Graph, NewNodes, contiguous, from_edges
from jsage.infer import StreamOptions, embed_to_file
from jsage.infer.tracing import TracingBlock, names_read, trace_levels
from jsage.sampling import full_block

KNOWN, ALL, WIDTH = 40, 43, 5
SMALL = StreamOptions(rows=8, edges=16, seconds=0.0)
quick = partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


class Linked(nn.Module):
    """Four reductions: of the mean's rows, of the degrees, and of both of their results."""

    features: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, h, block, *, deterministic=True):
        z = nn.Dense(self.features, use_bias=False, name="dense")(h)
        own, count = block.own(z), 1 + block.degrees()[:, None].astype(z.dtype)
        mean = aggregate.mean(z, block)
        spread = block.reduce(lambda dst, src, edge: (src - dst) ** 2, SUM, mean, z) / count

        def attended(dst, src, edge):
            return (dst["part"] * src).sum(-1), src

        near = block.reduce(attended, SOFTMAX_SUM, {"part": own * count / 4}, z)

        def furthest(dst, src, edge):
            return edge["weight"][:, None] * jnp.abs(src - dst[1]) + dst[0]

        far = block.reduce(furthest, MAX, (spread, near), z, own=spread)
        return own + spread + near + far


MODEL = GraphSAGE(hidden=4, out=3, conv=Linked)


pytestmark = pytest.mark.usefixtures("quick_compiles", "small_parts")


@cache
def ends() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges among 43 nodes and their weights: a hub, nodes alone, parallel edges; the last six are new."""
    random = np.random.default_rng(0)
    src, dst = random.integers(0, KNOWN - 5, (2, 110))
    dst[:50], src[50:53], dst[50:53] = 7, 3, 9
    new = np.array([[3, 7, KNOWN, KNOWN + 1, 12, KNOWN + 2], [KNOWN, KNOWN, KNOWN + 1, 7, KNOWN + 2, 12]])
    src, dst = np.concatenate([src, new[0]]), np.concatenate([dst, new[1]])
    return src, dst, random.uniform(0.5, 2.0, len(src)).astype(np.float32)


@cache
def known() -> Graph:
    """The graph without the new nodes and their edges."""
    src, dst, weight = ends()
    return from_edges(src[:-6], dst[:-6], KNOWN, weight=weight[:-6])


@cache
def table() -> np.ndarray:
    return features(1, ALL, WIDTH)


@cache
def variables():
    blocks = (full_block(known()),) * 2
    return reference.filled(jax.eval_shape(MODEL.init, jax.random.key(0), table()[:KNOWN], blocks))


def linked(z: np.ndarray, near: np.ndarray, weight: np.ndarray, own: np.ndarray) -> np.ndarray:
    """One node's row in NumPy, from its neighbors' rows and its own."""
    count, weight = 1 + len(near), weight[:, None]
    mean = (weight * z[near]).sum(0) / max(len(near), 1)
    spread = ((z[near] - mean) ** 2).sum(0) / count
    logit = (own * count / 4 * z[near]).sum(-1)
    part = np.exp(logit - logit.max(initial=-np.inf))
    close_by = (part[:, None] * z[near]).sum(0) / max(part.sum(), 1e-30)
    far = np.concatenate([weight * np.abs(z[near] - close_by) + spread, [spread]]).max(0)
    return own + spread + close_by + far


@cache
def expected(num_nodes: int) -> np.ndarray:
    """Both layers in float64, over the known nodes alone or over all."""
    src, dst, weight = (x if num_nodes == ALL else x[:-6] for x in ends())
    h, params = np.asarray(table()[:num_nodes], np.float64), reference.float64(variables())["params"]
    for k in range(2):
        z = h @ params[f"convs_{k}"]["dense"]["kernel"]
        here = [dst == v for v in range(num_nodes)]
        h = np.stack([linked(z, src[into], weight[into], z[v]) for v, into in enumerate(here)])
        h = np.maximum(h, 0) if k == 0 else h
    return h


def close(found, right):
    np.testing.assert_allclose(found, right, rtol=2e-5, atol=2e-5 * np.abs(right).max())


def test_the_whole_graph():
    close(quick(MODEL.apply)(variables(), table()[:KNOWN], (full_block(known()),) * 2), expected(KNOWN))


def test_levels():
    at = []

    def listen(rows):
        block = TracingBlock(jnp.ones(2, jnp.int32), {"weight": jnp.ones(2)})
        at.extend(
            trace_levels(lambda h, block: MODEL.apply(variables(), 0, h, block, method="layer"), rows, block)
        )

    jax.eval_shape(listen, jax.ShapeDtypeStruct((2, WIDTH), np.float32))
    assert at == [0, 1, 0, 2]


def test_by_layers_on_the_device():
    close(embed_all(MODEL, variables(), known(), table()[:KNOWN]), expected(KNOWN))
    some = np.array([7, 3, 39, 7])
    close(embed_all(MODEL, variables(), known(), table()[:KNOWN], nodes=some), expected(KNOWN)[some])


@pytest.mark.slow
@pytest.mark.parametrize("on_host", [False, True])
def test_into_a_file(on_host, tmp_path):
    """The hub has more edges than a part."""
    options = SMALL._replace(gather_on_host=on_host)
    embed_to_file(str(tmp_path / "all.npy"), MODEL, variables(), known(), table()[:KNOWN], options)
    close(np.load(tmp_path / "all.npy"), expected(KNOWN))


def test_new_nodes():
    """What the rebuilt graph gives."""
    src, dst, weight = (x[-6:] for x in ends())
    src, dst = (np.where(ids < KNOWN, ids, KNOWN - 1 - ids) for ids in (src, dst))
    new = NewNodes(table()[KNOWN:], src, dst, {"weight": weight})
    found = embed_new(MODEL, variables(), known(), jax.device_put(table()[:KNOWN]), new)
    close(found, expected(ALL)[KNOWN:])


def test_on_a_mesh():
    """By turns of 16 edges: the hub's are read three times over."""
    mesh, placement = parallel.make_mesh(), contiguous(KNOWN, 8)
    given = (
        parallel.replicate(variables(), mesh),
        parallel.shard_graph(known(), placement, mesh),
        parallel.shard_features(table()[:KNOWN], placement, mesh),
    )
    budget = parallel.Budget(capacity=3, edges=16, rows=4)
    run = parallel.on_mesh(
        lambda *given: parallel.embed_all(MODEL, *given, budget), mesh, given, PartitionSpec("data")
    )
    owner, local = placement.locate(np.arange(KNOWN))
    close(quick(run)(*given)[owner * placement.rows + local], expected(KNOWN))


class Calls(nn.Module):
    """A layer that is a function of a scale, rows and a block."""

    function: object
    features: int = 1
    dropout: float = 0.0

    @nn.compact
    def __call__(self, h, block, *, deterministic=True):
        return self.function(self.param("scale", nn.initializers.ones, (h.shape[1],)), h, block)


def calls(function) -> GraphSAGE:
    return GraphSAGE(hidden=1, out=1, num_layers=1, conv=partial(Calls, function))


SCALE = {"params": {"convs_0": {"scale": np.arange(1, WIDTH + 1, dtype=np.float32)}}}


def times(value):
    return lambda dst, src, edge: src * value


def one_more_of(value):
    """A sum whose steps add more than they read."""
    return Reduction(
        SUM.start, lambda state, message, mask: SUM.step(state, message, mask) + value, SUM.finish
    )


TOLD = "depend on an earlier reduction or on degrees.*pass what depends on them as `dst`"
CLOSED = "closes over an array that depends on rows, on an earlier .*pass rows of the destinations as `dst`"
REFUSED = {
    "sources of a result": (lambda p, h, block: block.sum(h + block.sum(h)), "reduction 2 " + TOLD),
    "sources of degrees": (
        lambda p, h, block: block.sum(h / block.degrees()[:, None]),
        "reduction 1 " + TOLD,
    ),
    "a message of a result": (
        lambda p, h, block: block.reduce(times(block.sum(h).sum()), SUM, None, h),
        "reduction 2 " + CLOSED,
    ),
    "a message of degrees": (
        lambda p, h, block: block.reduce(times(block.degrees().sum()), SUM, None, h),
        "reduction 1 " + CLOSED,
    ),
    "a message of rows": (
        lambda p, h, block: block.reduce(times(h.sum()), SUM, None, h),
        "reduction 1 " + CLOSED,
    ),
    "a step of rows": (
        lambda p, h, block: block.reduce(weighted_source, one_more_of(h.sum()), None, h),
        "reduction 1 " + CLOSED,
    ),
    "remat of a layer": (
        lambda p, h, block: jax.checkpoint(lambda h, block: block.sum(h))(h, block),
        "block went through a transformation.*wrap functions of rows inside the layer",
    ),
    "vmap of a layer": (
        lambda p, h, block: jax.vmap(lambda h, block: block.sum(h), (0, None))(h[None], block)[0],
        "block went through a transformation.*wrap functions of rows inside the layer",
    ),
    "jit of a layer that holds its block": (
        lambda p, h, block: jax.jit(lambda h: block.sum(h))(h),
        "asks its block for a reduction within a transformation.*wrap functions of rows inside the layer",
    ),
    "an edge's rows": (
        lambda p, h, block: block.sum(h) * block.edge_data["weight"][:, None],
        r"edge_data\['weight'\] has no rows here.*in its messages",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    function, message = REFUSED[name]
    with pytest.raises(TypeError, match=message):
        jax.eval_shape(partial(embed_all, calls(function)), SCALE, known(), table()[:KNOWN])


def test_a_rematerialized_convolution_is_refused():
    model = GraphSAGE(hidden=4, out=3, conv=nn.remat(Linked))
    with pytest.raises(TypeError, match="block went through a transformation"):
        jax.eval_shape(partial(embed_all, model), variables(), known(), table()[:KNOWN])


def test_refused_on_the_other_paths(tmp_path):
    model, mesh, placement = (
        calls(REFUSED["sources of a result"][0]),
        parallel.make_mesh(),
        contiguous(KNOWN, 8),
    )
    new = NewNodes(table()[KNOWN:], [3], [-1], {"weight": np.ones(1, np.float32)})
    with pytest.raises(TypeError, match=TOLD):
        embed_new(model, SCALE, known(), jax.device_put(table()[:KNOWN]), new)
    with pytest.raises(TypeError, match=TOLD):
        embed_to_file(str(tmp_path / "all.npy"), model, SCALE, known(), table()[:KNOWN], SMALL)
    given = (
        parallel.replicate(SCALE, mesh),
        parallel.shard_graph(known(), placement, mesh),
        parallel.shard_features(table()[:KNOWN], placement, mesh),
    )
    run = partial(parallel.embed_all, model, budget=parallel.Budget(capacity=3, edges=16, rows=4))
    with pytest.raises(TypeError, match=TOLD):
        jax.eval_shape(parallel.on_mesh(run, mesh, given, PartitionSpec("data")), *given)
    assert not list(tmp_path.iterdir())


def test_what_may_be_sent_and_closed_over():
    """Parameters, constants, what a transformed function makes of rows alone, whatever else it makes."""

    def function(scale, h, block):
        mean = aggregate.mean(h, block)
        both = jax.jit(lambda rows, other: (2 * rows, other + rows))
        src, dst = jax.checkpoint(both)(h, mean)
        message = lambda dst, src, edge: scale[None] * (src - dst) + SCALE["params"]["convs_0"]["scale"][None]  # noqa: E731
        return block.reduce(message, SUM, dst, src + jnp.zeros_like(mean))

    found = embed_all(calls(function), SCALE, known(), table()[:KNOWN])
    on_all = quick(calls(function).apply)(SCALE, table()[:KNOWN], (full_block(known()),))
    close(found, np.asarray(on_all))


@pytest.mark.slow
def test_a_layer_may_ask_what_edges_have(tmp_path):
    """It decides alike wherever it runs, although no message of its own reads what it asks about."""

    def function(scale, h, block):
        return block.sum(h) * (2 if "kind" in block.edge_data else 1) * len(block.edge_data)

    graph = known()._replace(edge_data={**known().edge_data, "kind": np.ones(110, np.int32)})
    src, dst, weight = (x[:-6] for x in ends())
    right = np.zeros((KNOWN, WIDTH))
    np.add.at(right, dst, 4 * weight[:, None] * table()[src])
    close(embed_all(calls(function), SCALE, graph, table()[:KNOWN]), right)
    embed_to_file(str(tmp_path / "all.npy"), calls(function), SCALE, graph, table()[:KNOWN], SMALL)
    close(np.load(tmp_path / "all.npy"), right)
    asks = partial(function, None)
    assert names_read(asks, jnp.ones((1, 2)), {"kind": jnp.ones(1), "x": jnp.ones(1)}) == ["kind", "x"]
    names = TracingBlock(jnp.ones(1, jnp.int32), {"kind": jnp.ones(1)}).edge_data
    assert (list(names), names.get("age"), bool(names)) == (["kind"], None, True)
    with pytest.raises(KeyError):
        names["age"]
