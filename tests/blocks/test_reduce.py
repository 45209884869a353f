"""One reduction on every layout: values and gradients of each, and a convolution of attention on all paths.

The convolution is written from public names alone, as a user would: what runs it runs any other.
"""

import itertools
from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import AWKWARD, LAYOUTS, NUM_NODES, features, hop
from jax.sharding import PartitionSpec

from jsage import GraphSAGE, embed_all, embed_new, parallel
from jsage.blocks import Tree, as_segments, sliced_full_block
from jsage.blocks.reductions import MAX, SOFTMAX_SUM, SUM
from jsage.graph import Graph, Location, NewNodes, contiguous, from_edges
from jsage.infer import StreamOptions, embed_to_file
from jsage.sampling import full_block, sample_blocks, sample_blocks_by_node
from jsage.sampling.exact import StreamedBlock
from jsage.serving import export, runtime

HEADS, PART, EDGE = 2, 3, 2

quick = partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)
"""For programs that run once: compiled quickly rather than well."""


def signed(ids):
    """Ids as `NewNodes` has them: new node `i` is `-1 - i`."""
    return np.where(ids < KNOWN, ids, KNOWN - 1 - ids)


def plain(params, dst, src, edge):
    """A message of all three rows, whole numbers of the edge among them."""
    kind = jnp.where(edge["kind"] > 0, 1.0, 0.5)[:, None]
    return jnp.round(4 * (src @ params["src"] + dst * kind)) / 4 + edge["feature"] @ params["edge"]


def attended(params, dst, src, edge):
    value = plain(params, dst, src, edge).reshape(-1, HEADS, PART)
    return (jnp.tanh(value) * params["vector"][None]).sum(-1), value


REDUCTIONS = {"sum": (SUM, plain), "max": (MAX, plain), "softmax": (SOFTMAX_SUM, attended)}
"""name -> reduction, message"""


def densely(name, message, mask):
    """The reduction of `[num_dst, slots, ...]` messages, all at once."""
    if name == "softmax":
        logit, value = message
        part = jax.nn.softmax(jnp.where(mask[..., None], logit, -1e30), axis=1) * mask[..., None]
        return (part[..., None] * jnp.where(mask[..., None, None], value, 0)).sum(1)
    if name == "sum":
        return jnp.where(mask[..., None], message, 0).sum(1)
    top = jnp.where(mask[..., None], message, -jnp.inf).max(1)
    return jnp.where(mask.any(1)[:, None], top, 0)


def dense(name, given, block):
    """What `reduce` should give, from a table of slots, by JAX's own gradients; `own` is one slot more."""
    mask = block.mask
    src = jnp.where(mask[..., None], given["table"][block.src], 0)
    edge = {"feature": given["feature"], "kind": block.edge_data["kind"]}
    edge = jax.tree.map(lambda x: jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 2)), x, 0), edge)
    ends = jnp.broadcast_to(given["dst"][:, None], (*mask.shape, given["dst"].shape[1])), src, edge
    flat = jax.tree.map(lambda x: x.reshape(mask.size, *x.shape[2:]), ends)
    sent = REDUCTIONS[name][1](given["params"], *flat)
    sent = jax.tree.map(lambda x: x.reshape(*mask.shape, *x.shape[1:]), sent)
    if given["own"] is not None:
        sent = jax.tree.map(lambda x, y: jnp.concatenate([x, y[:, None]], 1), sent, given["own"])
        mask = jnp.pad(mask, ((0, 0), (0, 1)), constant_values=True)
    return densely(name, sent, mask)


def inputs(block, num_rows, own):
    """Everything that has a gradient."""
    width = HEADS * PART
    given = {
        "params": {
            "src": features(1, 5, width),
            "edge": features(2, EDGE, width),
            "vector": features(3, HEADS, PART),
        },
        "dst": np.round(4 * features(4, block.num_dst, width)) / 4,
        "table": features(5, num_rows, 5),
        "feature": np.round(2 * features(6, block.mask.size, EDGE)).reshape(*block.mask.shape, EDGE),
        "own": None,
    }
    if own:
        value = features(8, block.num_dst, width).reshape(-1, HEADS, PART)
        given["own"] = {"softmax": (value.sum(-1), value)}.get(own, value.reshape(-1, width))
    return given


@cache
def numbered(of):
    block = hop(of)
    return block._replace(edge_data={"kind": jnp.arange(block.mask.size).reshape(block.mask.shape) % 2})


def pulls(function, given, cotangent):
    out, pull = jax.vjp(function, given)
    return out, pull(jnp.asarray(cotangent, out.dtype).reshape(out.shape))[0]


@cache
def on_layout(name, layout):
    """Values and gradients, in one program for all graphs."""

    @quick
    def run(given, block, cotangent):
        def function(given):
            data = {**block.edge_data, "feature": given["feature"]}
            h, view = LAYOUTS[layout](block._replace(edge_data=data), given["table"])
            reduction, message = REDUCTIONS[name]
            return view.reduce(partial(message, given["params"]), reduction, given["dst"], h, given["own"])

        return pulls(function, given, cotangent)

    return run


@cache
def by_hand(name):
    return quick(
        lambda given, block, cotangent: pulls(lambda given: dense(name, given, block), given, cotangent)
    )


def close(found, expected, tol=1e-5):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=tol, atol=tol), found, expected)


def reordered(order, x):
    return np.take_along_axis(np.asarray(x), order.reshape(order.shape + (1,) * (x.ndim - 2)), 1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("own", [False, True], ids=["", "own"])
def test_values_and_gradients_are_those_of_all_messages_at_once(name, layout, own):
    """Degrees 0 among them; then with NaN wherever padding points, and with the slots in another order."""
    for of in ("isolated nodes", "parallel edges", "random"):
        block, cotangent = numbered(of), features(9, NUM_NODES, HEADS * PART)
        given = inputs(block, NUM_NODES + 1, name if own else None)
        expected = by_hand(name)(given, block, cotangent)
        run = on_layout(name, layout)
        close(run(given, block, cotangent), expected)
        mask = np.asarray(block.mask)
        nan = block._replace(src=jnp.where(block.mask, block.src, NUM_NODES))
        poisoned = {**given, "table": given["table"].copy(), "feature": given["feature"].copy()}
        poisoned["table"][NUM_NODES], poisoned["feature"][~mask] = np.nan, np.nan
        close(run(poisoned, nan, cotangent), expected)
        order = np.random.default_rng(0).permuted(np.tile(np.arange(mask.shape[1]), (NUM_NODES, 1)), axis=1)
        turn = partial(reordered, order)
        turned = block._replace(
            src=turn(block.src), mask=turn(block.mask), edge_data={"kind": turn(block.edge_data["kind"])}
        )
        value, grads = run({**given, "feature": turn(given["feature"])}, turned, cotangent)
        close(value, expected[0])
        close({**grads, "feature": None}, {**expected[1], "feature": None})
        close(grads["feature"], turn(expected[1]["feature"]))


def test_a_destination_that_reads_nothing_gets_zero_and_no_gradient():
    block, cotangent = numbered("no edges"), features(9, NUM_NODES, HEADS * PART)
    for name, layout in itertools.product(REDUCTIONS, LAYOUTS):
        value, grads = on_layout(name, layout)(inputs(block, NUM_NODES + 1, None), block, cotangent)
        assert not np.any(value)
        assert not any(np.any(x) for x in jax.tree.leaves(grads))


AWKWARD_ENDS = [
    np.concatenate([ends[i] + NUM_NODES * n for n, ends in enumerate(AWKWARD.values())]) for i in (0, 1)
]
NODES = NUM_NODES * len(AWKWARD)


def test_one_node_without_edges_gives_zeros():
    block = full_block(from_edges([], [], num_nodes=1))
    h, logit = np.ones((1, 2), np.float32), np.ones(1, np.float32)
    send = lambda dst, src, edge: src  # noqa: E731
    for reduction, src in ((MAX, h), (SOFTMAX_SUM, (logit, h))):
        got = jax.jit(lambda src, reduction=reduction: block.reduce(send, reduction, None, src))(src)
        np.testing.assert_array_equal(got, np.zeros((1, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("name", REDUCTIONS)
def test_the_whole_graph_sorted_by_degree_is_that_of_a_list(name):
    """In chunks of four rows with three slots: hubs are in pieces of pieces."""
    count = len(AWKWARD_ENDS[0])
    data = {"feature": np.round(2 * features(6, count, EDGE)), "kind": np.arange(count) % 2}
    graph = from_edges(*AWKWARD_ENDS, NODES, **data)
    layouts = full_block(graph), sliced_full_block(graph, rows=4, limit=3)
    reads = {"table": features(5, NODES, 5), "dst": np.round(4 * features(4, NODES, HEADS * PART)) / 4}
    given = {**inputs(hop("random"), 1, None), **reads, "feature": graph.edge_data["feature"]}
    value = features(8, NODES, HEADS * PART).reshape(-1, HEADS, PART)
    own = (value.sum(-1), value) if name == "softmax" else value.reshape(NODES, -1)

    @quick
    def run(given, block, cotangent):
        def function(given):
            view = block._replace(edge_data={**block.edge_data, "feature": given["feature"]})
            reduction, message = REDUCTIONS[name]
            return view.reduce(
                partial(message, given["params"]), reduction, given["dst"], given["table"], given["own"]
            )

        return pulls(function, given, cotangent)

    for each in (None, own):
        found = [run({**given, "own": each}, block, features(9, NODES, HEADS * PART)) for block in layouts]
        close(found[1], found[0])
    unread = np.setdiff1d(np.arange(NODES), AWKWARD_ENDS[0])
    poisoned = {**given, "table": given["table"].copy()}
    poisoned["table"][unread] = np.nan
    found = [run(x, layouts[1], features(9, NODES, HEADS * PART)) for x in (given, poisoned)]
    jax.tree.map(np.testing.assert_array_equal, *found)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_neighborhoods_in_pieces_are_those_of_a_list(name):
    count = len(AWKWARD_ENDS[0])
    data = {"feature": np.round(2 * features(6, count, EDGE)), "kind": np.arange(count) % 2}
    graph, seeds = from_edges(*AWKWARD_ENDS, NODES, **data), jnp.arange(0, NODES, 3)
    params, dst = inputs(hop("random"), 1, None)["params"], features(4, NODES, HEADS * PART)
    reduction, message = REDUCTIONS[name]
    table = jnp.asarray(features(5, NODES, 5))
    read = lambda block, dst: block.reduce(partial(message, params), reduction, dst, table)  # noqa: E731
    found = quick(read)(StreamedBlock(graph, seeds, graph.degrees(seeds)), dst[seeds])
    close(found, quick(read)(full_block(graph), dst)[seeds])


def thousand(layout):
    """One destination that reads a thousand rows."""
    tree = Tree(jnp.ones((1, 1000), bool))
    graph = from_edges(np.arange(1, 1001), np.zeros(1000, int), 1001)
    return {
        "tree": lambda: tree,
        "segments": lambda: as_segments(tree),
        "classes": lambda: sliced_full_block(graph, limit=64),
        "pieces": lambda: StreamedBlock(graph, jnp.zeros(1, jnp.int32), jnp.array([1000])),
    }[layout]()


@pytest.mark.parametrize("layout", ["tree", "segments", "classes", "pieces"])
def test_a_softmax_of_logits_far_apart_in_any_order(layout):
    """From -300 to 300 and back: what was read before has to be scaled down, and nothing overflows."""

    @quick
    def run(h, block):
        return block.reduce(lambda dst, src, edge: (src[:, :1], src[:, 1:]), SOFTMAX_SUM, None, h)[0]

    logit, value = np.linspace(-300, 300, 1001), features(1, 1001, 1)[:, 0]
    for rows in (logit, logit[::-1]):
        part = np.exp(rows[1:] - rows[1:].max())
        found = run(np.stack([rows, value], 1).astype(np.float32), thousand(layout))
        close(found, [(part * value[1:]).sum() / part.sum()], 1e-4)


@pytest.mark.parametrize("layout", ["tree", "segments", "classes"])
def test_ties_of_a_maximum_of_messages_share_the_gradient(layout):
    """Half of the thousand are the largest, and the destination's own message is one more."""
    h, block = np.arange(1001, dtype=np.float32)[:, None] > 500, thousand(layout)

    @quick
    def run(h, own, block):
        top = lambda h, own: block.reduce(lambda dst, src, edge: src + 0, MAX, None, h, own)[0, 0]  # noqa: E731
        return jax.grad(top, (0, 1))(h, own)

    own = np.arange(block.num_dst)[:, None] == 0
    to_h, to_own = run(h.astype(np.float32), np.ones(own.shape, np.float32), block)
    close((to_h, to_own), (h / 501, own / 501))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tree", "segments", "classes", "pieces"])
def test_bfloat16_is_summed_in_float32(layout):
    """The first half are zeros: the sum, and a softmax of equals. In bfloat16 sums stop at 256."""
    h = np.concatenate([np.zeros((501, 1)), np.ones((500, 1))]).astype(jnp.bfloat16)

    @quick
    def run(h, block):
        total = block.reduce(lambda dst, src, edge: src + 0, SUM, None, h)
        even = block.reduce(lambda dst, src, edge: (0 * src, src), SOFTMAX_SUM, None, h)
        return total[0, 0], even[0, 0]

    total, even = run(h, thousand(layout))
    assert total.dtype == even.dtype == jnp.bfloat16
    assert (float(total), float(even)) == (500, 0.5)


def test_memory_does_not_grow_with_the_degree():
    """Forwards and backwards, of a table's rows, the parameters and the destinations."""

    def temporaries(fanout):
        block = jax.eval_shape(
            lambda: hop("random")._replace(
                dst=jnp.zeros(512, jnp.int32),
                src=jnp.zeros((512, fanout), jnp.int32),
                mask=jnp.ones((512, fanout), bool),
            )
        )

        def loss(params, table, dst, block):
            sent = lambda dst, src, edge: ((src * dst) @ params, (src @ params)[..., None])  # noqa: E731
            return block.reduce(sent, SOFTMAX_SUM, dst, table).sum()

        given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 2), (100, 64), (512, 64))]
        program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*given, block).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporaries(64) < temporaries(8) + 64 * 512 * 16 < 64 * 512 * 64 * 4


class Attention(nn.Module):
    """Multi-head attention of the GATv2 kind over neighbors and the node itself, with edge features.

    `logit = a . leaky(W_d h_v + W_s h_u + W_e e)`, `value = w (W_s h_u + W_e e)`, heads side by side.
    """

    features: int
    heads: int = 2
    dropout: float = 0.0

    @nn.compact
    def __call__(self, h, block, *, deterministic=True):
        shape = self.heads, self.features // self.heads
        source = nn.DenseGeneral(shape, name="source")
        rows, read_by = block.sources(h)
        left = nn.DenseGeneral(shape, name="destination")(block.own(h))
        edge_kernel = self.param("edge", nn.initializers.normal(), (3, *shape))
        vector = self.param("vector", nn.initializers.normal(), shape)

        def attend(dst, value):
            return (nn.leaky_relu(dst + value, 0.2) * vector[None]).sum(-1), value

        def message(dst, src, edge):
            sent = src + jnp.einsum("re,ehc->rhc", edge["feature"], edge_kernel)
            logit, value = attend(dst, sent)
            return logit, value * edge["weight"][:, None, None]

        itself = attend(left, source(block.own(h)))
        out = read_by.reduce(message, SOFTMAX_SUM, left, source(rows), own=itself)
        return out.reshape(out.shape[0], self.features)


def attention(params, h, own, lists):
    """The same in float64 NumPy, a node at a time; `lists[v]` are `(sources, features, weights)`."""
    affine = lambda name, x: np.einsum("rd,dhc->rhc", x, params[name]["kernel"]) + params[name]["bias"]  # noqa: E731
    source, left, out = affine("source", h), affine("destination", h[own]), []
    for v, (near, edge, weight) in enumerate(lists):
        mine = source[own[v]][None]
        sent = np.concatenate([source[near] + np.einsum("re,ehc->rhc", edge, params["edge"]), mine])
        scored = left[v] + sent
        logit = (np.where(scored > 0, scored, 0.2 * scored) * params["vector"]).sum(-1)
        part = np.exp(logit - logit.max(0))
        part /= part.sum(0)
        value = sent * np.concatenate([weight, [1.0]])[:, None, None]
        out.append((part[..., None] * value).sum(0).ravel())
    return np.stack(out)


KNOWN, ALL, WIDTH = 40, 43, 5
MODEL = GraphSAGE(hidden=6, out=4, conv=Attention)


@cache
def world() -> tuple[Graph, np.ndarray, dict]:
    """A graph with a hub, nodes alone and parallel edges, whose last nodes are new; the edges given."""
    random = np.random.default_rng(0)
    src, dst = random.integers(0, KNOWN - 5, (2, 110))
    dst[:50], src[50:53], dst[50:53] = 7, 3, 9
    new = np.array([[3, 7, KNOWN, KNOWN + 1, 12, KNOWN + 2], [KNOWN, KNOWN, KNOWN + 1, 7, KNOWN + 2, 12]])
    src, dst = np.concatenate([src, new[0]]), np.concatenate([dst, new[1]])
    data = {"feature": random.normal(size=(len(src), 3)), "weight": random.uniform(0.5, 2.0, len(src))}
    data = {name: x.astype(np.float32) for name, x in data.items()}
    return from_edges(src, dst, ALL, **data), features(1, ALL, WIDTH), {"src": src, "dst": dst, **data}


@cache
def known() -> Graph:
    """The graph without the new nodes and their edges, which are the last six."""
    given = {name: x[:-6] for name, x in world()[2].items()}
    return from_edges(given.pop("src"), given.pop("dst"), KNOWN, **given)


@cache
def variables():
    graph, table, _ = world()
    blocks = (full_block(graph),) * 2
    return jax.tree.map(lambda x: 3 * x, quick(MODEL.init)(jax.random.key(0), jnp.asarray(table), blocks))


def lists(graph: Graph):
    """Each node's sources, edge features and weights."""
    indptr, indices = np.asarray(graph.indptr), np.asarray(graph.indices)
    feature, weight = (np.asarray(graph.edge_data[name], np.float64) for name in ("feature", "weight"))
    return [(indices[a:b], feature[a:b], weight[a:b]) for a, b in itertools.pairwise(indptr)]


def expected(graph: Graph, table: np.ndarray) -> np.ndarray:
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), variables()["params"])
    h, own = np.asarray(table, np.float64), np.arange(len(table))
    h = np.maximum(attention(params["convs_0"], h, own, lists(graph)), 0)
    return attention(params["convs_1"], h, own, lists(graph))


@pytest.fixture(scope="module")
def right() -> np.ndarray:
    """What attention gives on the known graph."""
    return expected(known(), world()[1][:KNOWN])


@pytest.mark.parametrize("layout", ["edges", "classes"])
def test_attention_over_the_whole_graph(layout, right):
    block = full_block(known()) if layout == "edges" else sliced_full_block(known(), rows=4, limit=3)
    close(quick(MODEL.apply)(variables(), world()[1][:KNOWN], (block,) * 2), right)


def test_attention_by_layers_on_the_device(right):
    table = world()[1][:KNOWN]
    close(embed_all(MODEL, variables(), known(), table), right)
    some = np.array([7, 3, 39, 7])
    close(embed_all(MODEL, variables(), known(), table, nodes=some), right[some])


@pytest.mark.slow
@pytest.mark.parametrize("on_host", [False, True])
def test_attention_into_a_file(on_host, right, tmp_path):
    """The hub has more edges than a part."""
    options = StreamOptions(rows=8, edges=16, gather_on_host=on_host)
    embed_to_file(str(tmp_path / "all.npy"), MODEL, variables(), known(), world()[1][:KNOWN], options)
    close(np.load(tmp_path / "all.npy"), right)


@pytest.mark.parametrize("fanouts", [None, (64, 64)])
def test_attention_of_new_nodes(fanouts):
    """Of all edges they are the last six: what the rebuilt graph gives."""
    graph, table, given = world()
    last = {name: x[-6:] for name, x in given.items()}
    new = NewNodes(table[KNOWN:], signed(last.pop("src")), signed(last.pop("dst")), last)
    found = embed_new(MODEL, variables(), known(), jnp.asarray(table[:KNOWN]), new, fanouts)
    close(found, expected(graph, table)[KNOWN:])


def test_attention_exported(right, tmp_path):
    graph, table = known(), world()[1][:KNOWN]
    plan = export.Plan(fanouts=(64, 64), sizes=(8,), new_sizes=())
    export.save(tmp_path / "artefact", MODEL.apply, variables(), graph, table, plan)
    arrays = {"indptr": graph.indptr, "indices": graph.indices, "features": table}
    arrays |= {f"edge_{name}": x for name, x in graph.edge_data.items()}
    nodes = [7, 3, 39, 0]
    found = runtime.load(tmp_path / "artefact").place(jax.tree.map(np.asarray, arrays)).embed(nodes)
    close(found, right[nodes])


@pytest.mark.slow
def test_attention_on_a_mesh(right):
    """Exactly, by turns of 16 edges; and on blocks that are sampled at their owners, whole."""
    mesh, placement, table = parallel.make_mesh(), contiguous(KNOWN, 8), world()[1][:KNOWN]
    given = (
        parallel.replicate(variables(), mesh),
        parallel.shard_graph(known(), placement, mesh),
        parallel.shard_features(table, placement, mesh),
    )
    budget = parallel.Budget(capacity=3, edges=16, rows=4)
    run = parallel.on_mesh(
        lambda *given: parallel.embed_all(MODEL, *given, budget), mesh, given, PartitionSpec("data")
    )
    owner, local = placement.locate(np.arange(KNOWN))
    close(quick(run)(*given)[owner * placement.rows + local], right)

    def step(params, graph, rows, seeds):
        ids, blocks, _ = parallel.sample_blocks(jax.random.key(0), graph, seeds, (64, 64), (64, 64))
        found, _ = parallel.fetch(rows, ids, capacity=64)
        return MODEL.apply(params, found, blocks)

    places = Location(*(jnp.asarray(x, jnp.int32) for x in (owner, local)))
    sampled = *given, parallel.split(places, mesh)
    run = parallel.on_mesh(step, mesh, sampled, PartitionSpec("data"))
    close(quick(run)(*sampled), right)


@pytest.mark.slow
def test_attention_trains_on_sampled_blocks():
    """Gradients of all parameters, and of the features, are those of all messages at once."""
    graph, table = known(), jnp.asarray(world()[1][:KNOWN])
    seeds = jnp.array([7, 3, 39, 9, 7], jnp.int32)
    blocks = sample_blocks(jax.random.key(1), graph, seeds, (5, 4))
    cotangent = features(3, len(seeds), 4)

    def layer(params, h, block):
        own, tree = block.own(h), isinstance(block, Tree)
        near = h[block.num_dst :].reshape(*block.mask.shape, -1) if tree else h[block.src]
        affine = lambda name, x: (  # noqa: E731
            jnp.einsum("...d,dhc->...hc", x, params[name]["kernel"])
            + params[name]["bias"].reshape((1,) * (x.ndim - 1) + params[name]["bias"].shape)
        )
        sent = affine("source", near) + jnp.einsum(
            "rke,ehc->rkhc", block.edge_data["feature"], params["edge"]
        )
        sent = jnp.concatenate([sent, affine("source", own)[:, None]], 1)
        mask = jnp.pad(block.mask, ((0, 0), (0, 1)), constant_values=True)
        scale = jnp.pad(block.edge_data["weight"], ((0, 0), (0, 1)), constant_values=1.0)
        scored = nn.leaky_relu(affine("destination", own)[:, None] + sent, 0.2) * params["vector"][None, None]
        out = densely("softmax", (scored.sum(-1), sent * scale[..., None, None]), mask)
        return out.reshape(out.shape[0], -1)

    def reference(params, table):
        h = nn.relu(layer(params["params"]["convs_0"], table, blocks[0]))
        return (layer(params["params"]["convs_1"], h, blocks[1]) * cotangent).sum()

    def loss(params, table):
        return (MODEL.apply(params, table, blocks) * cotangent).sum()

    found, by_hand = (quick(jax.value_and_grad(f, (0, 1)))(variables(), table) for f in (loss, reference))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    assert all(np.any(np.asarray(x)) for x in jax.tree.leaves(found))
    close(found, by_hand, 3e-5)


@pytest.mark.slow
def test_attention_by_node_on_whole_neighborhoods(right):
    graph, table = known(), jnp.asarray(world()[1][:KNOWN])
    blocks = sample_blocks_by_node(jax.random.key(0), graph, jnp.arange(KNOWN), (64, 64))
    close(quick(MODEL.apply)(variables(), table, blocks), right)


class Before(nn.Module):
    """A convolution that transforms rows before it aggregates them, as GCN's and GAT's usual form does."""

    features: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, h, block, *, deterministic=True):
        z = nn.Dense(self.features)(h)
        return block.reduce(lambda dst, src, edge: src, SUM, None, z) + block.own(z)


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [WIDTH, WIDTH + 2])
def test_new_nodes_of_a_convolution_that_transforms_first(hidden):
    """Of the features' width, where mixing transformed rows with others goes unseen, and of another."""
    graph, table, given = world()
    model, full = GraphSAGE(hidden, 3, conv=Before), (full_block(graph),) * 2
    init = quick(partial(model.init_with_output, jax.random.key(0)))
    rows, params = init(jnp.asarray(table), full)
    last = {name: x[-6:] for name, x in given.items()}
    new = NewNodes(table[KNOWN:], signed(last.pop("src")), signed(last.pop("dst")), last)
    for fanouts in (None, (64, 64)):
        found = embed_new(model, params, known(), jnp.asarray(table[:KNOWN]), new, fanouts)
        close(found, rows[KNOWN:])
