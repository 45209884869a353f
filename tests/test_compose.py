"""What callers bring: a `shard_map` of their own, other integers, arrays of the host, copies, long rows."""

import copy
import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import scipy.sparse
from jax.sharding import AxisType, PartitionSpec

import jsage
from jsage import parallel
from jsage._internal import checks
from jsage.blocks import SOFTMAX_SUM, aggregate, sliced_full_block
from jsage.graph import SortedGraph, TimeSortedGraph, from_edges, sort_by_time, sort_rows, symmetrize
from jsage.nn import LSTM, Pool, SAGEConv, l2_normalize
from jsage.recipes import fit_scaling
from jsage.sampling import LinkBatch, fast_key, negatives, sample_blocks_by_node, sample_link_blocks

N = 40
ENDS = np.random.default_rng(0).integers(0, N, (2, 160))
GRAPH = symmetrize(from_edges(*ENDS, N, weight=np.linspace(1, 2, 160, dtype=np.float32)))
X = np.random.default_rng(1).normal(size=(N, 6)).astype(np.float32)
SEEDS = np.arange(16, dtype=np.int32)
DRAWN = jax.jit(jsage.sample_blocks, static_argnames="fanouts")


def attention(params, h, block):
    """Of one head."""
    sent = lambda dst, src, edge: ((dst * src @ params).sum(-1), src @ params)  # noqa: E731
    return block.reduce(sent, SOFTMAX_SUM, block.own(h), h)


def model(aggregator):
    return jsage.GraphSAGE(hidden=5, out=3, conv=partial(SAGEConv, aggregate=aggregator))


def sampled(aggregator, params, given):
    graph, x, key, seeds = given
    blocks = sample_blocks_by_node(key, graph, seeds, (3, 2))  # the same for a node on any device
    return (model(aggregator).apply(params, x, blocks) ** 2).sum()


def whole(block, layer, params, given):
    _, x, _, seeds = given
    return (layer(params, x, block)[seeds] ** 2).sum()


def losses():
    for name, one in {"max": aggregate.max, "pool": Pool(), "lstm": LSTM()}.items():
        params = jax.eval_shape(
            model(one).init, jax.random.key(0), X, DRAWN(jax.random.key(0), GRAPH, SEEDS, (3, 2))
        )
        yield name, partial(sampled, one), jax.tree.map(lambda x: np.full(x.shape, 0.1, np.float32), params)
    for name, block in {
        "list": jsage.full_block(GRAPH),
        "sliced": sliced_full_block(GRAPH, rows=8, limit=4),
    }.items():
        mean = lambda params, h, block: aggregate.mean(h @ params, block)  # noqa: E731
        for layer in (mean, attention):
            yield name, partial(whole, block, layer), X[:6, :4]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "loss", "params"), [*losses()])
def test_a_shard_map_of_ones_own_with_its_default_check(name, loss, params):
    """Seeds split over two devices, all else on both: gradients are those of one device."""
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    given = GRAPH, jnp.asarray(X), jax.random.key(3), jnp.asarray(SEEDS)
    same = PartitionSpec()

    def part(params, given):
        return jax.lax.psum(loss(params, given), "x")

    specs = same, (same, same, same, PartitionSpec("x"))
    split = jax.shard_map(part, mesh=mesh, in_specs=specs, out_specs=same)
    found = jax.jit(jax.grad(split))(params, given)
    expected = jax.jit(jax.grad(loss))(params, given)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, jax.device_get(found), jax.device_get(expected))


def test_a_mesh_as_jax_makes_it_and_keys_of_philox():
    """Axes are explicit there: tables on it meet ids that are split, by any kind of key."""
    explicit = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2])
    automatic = parallel.make_mesh(jax.devices()[:2], "x")
    key = fast_key(3)

    @jax.jit
    def draw(key, graph, seeds):
        return jsage.sample_blocks(jax.random.fold_in(key, 1), graph, seeds, (3,))[0]

    def told(key, block):
        total = jax.lax.psum(block.src.sum(), "x")
        return key, total, jax.random.bits(parallel.per_device_key(key, "x"), (2,))

    seen = []
    for mesh, other in ((explicit, automatic), (automatic, explicit)):
        seeds = parallel.split(SEEDS, mesh)
        given = *parallel.replicate((key, GRAPH), mesh), seeds
        block = draw(*given)
        parts = PartitionSpec(), PartitionSpec(), PartitionSpec("x")
        whole = parallel.on_mesh(told, other, (given[0], block), parts)
        seen.append((block, jax.jit(whole)(key, block)))  # the key as it came
    words = jax.random.wrap_key_data(jax.random.key_data(key))
    expected = DRAWN(jax.random.fold_in(words, 1), GRAPH, SEEDS, (3,))  # hop 0 folds in again, alike
    for block, (again, total, bits) in seen:
        np.testing.assert_array_equal(block.src, expected[0].src)
        assert again == words
        assert int(total) == int(np.asarray(block.src).sum())
        own = [jax.random.bits(jax.random.fold_in(words, device), (2,)) for device in range(2)]
        np.testing.assert_array_equal(bits, np.concatenate(own))


def test_arrays_on_no_mesh_are_refused():
    mesh = parallel.make_mesh()
    for array in (X, jnp.asarray(X)):
        with pytest.raises(
            ValueError, match=r"on a mesh, got one of shape \(40, 6\) .*: pass what replicate"
        ):
            parallel.on_mesh(jnp.sum, mesh, (array,))


@pytest.mark.parametrize(
    ("dtype", "node"), [(np.int8, 127), (np.uint8, 255), (np.int16, 32767), (np.uint32, 300)]
)
def test_seeds_of_any_kind_of_integer_draw_alike(dtype, node):
    graph = from_edges(np.arange(300), [node] * 300, max(300, node + 1))
    for sample in (jsage.sample_blocks, sample_blocks_by_node):
        (block,) = jax.jit(sample, static_argnums=3)(jax.random.key(0), graph, np.array([node], dtype), (3,))
        assert int(block.mask.sum()) == 3
        assert block.dst.dtype == jnp.int32


@pytest.mark.parametrize(
    ("seeds", "match"),
    [(np.ones(N, bool), r"np.flatnonzero\(mask\)"), (np.ones(2), "got float64: convert"), ("ab", "got str")],
)
def test_what_is_no_array_of_integers_is_refused(seeds, match):
    with pytest.raises(TypeError, match=match):
        checks.as_ids(seeds, "seeds")


def test_links_need_rows_whose_order_is_known():
    """In rows as edges came, binary search misses edges: supervised ones stay, negatives are true edges."""
    graph, mask = from_edges(*ENDS, N), np.ones(8, bool)
    src, dst = ENDS[:, :8].astype(np.int32)
    batch = LinkBatch(*(jnp.asarray(x) for x in (src, dst, dst[:, None], mask)))
    for call in (
        lambda graph: sample_link_blocks(jax.random.key(0), graph, batch, (64,))[0],
        lambda graph: negatives.exclude_edges(
            jax.random.key(1), graph, batch.src, batch.negatives, negatives.uniform(N)
        ),
    ):
        with pytest.raises(TypeError, match=r"pass jsage.graph.sort_rows\(graph\)"):
            jax.eval_shape(call, graph)
        jax.eval_shape(call, sort_rows(graph))


def test_an_order_is_kept_by_what_keeps_it_and_by_nothing_else():
    graph = from_edges([2, 1, 0], [0, 0, 1], 3, time=[5, 7, 9], weight=[1.0, 2.0, 3.0])
    both = sort_rows(graph), sort_by_time(graph)
    assert [type(x) for x in both] == [SortedGraph, TimeSortedGraph]
    assert both[1].indices is graph.indices  # in order already
    for one in both:
        other = {**one.edge_data, "weight": jnp.ones(3)}
        assert type(one._replace(edge_data=other)) is type(one)
        assert type(one._replace(indices=graph.indices)) is jsage.Graph
        assert type(jax.tree.map(lambda x: x, one)) is type(one)
        assert type(jsage.graph.hide_nodes(one, [2])) is type(one)
        assert type(pickle.loads(pickle.dumps(one))) is type(copy.deepcopy(one)) is type(one)
        jsage.graph.validate(one)
    assert type(both[1]._replace(edge_data={"time": jnp.arange(3)})) is jsage.Graph
    for kind, name in ((SortedGraph, "sources"), (TimeSortedGraph, "times")):
        wrong = kind(graph.indptr, graph.indices, {"time": jnp.array([9, 5, 7])})
        with pytest.raises(
            ValueError, match=f"the {name} of a {kind.__name__}'s row must ascend, but do not in row 0"
        ):
            jsage.graph.validate(wrong)
    with pytest.raises(TypeError, match=r"pass jsage.graph.sort_by_time\(graph\)"):
        jsage.graph.GraphBefore(graph, jnp.array(3)).degrees(jnp.array([0]))
    with pytest.raises(ValueError, match="the graph's edges have no 'time'"):
        sort_by_time(from_edges([0], [1], 2))


def test_rows_of_any_length_are_scaled_to_one():
    rows = np.array([[1e20, 0], [1e-13, 0], [0, 0], [3e-20, -4e-20], [3, 4]], np.float32)
    found = jax.jit(l2_normalize)(rows)
    np.testing.assert_allclose(found, [[1, 0], [1, 0], [0, 0], [0.6, -0.8], [0.6, 0.8]], rtol=1e-6)
    grad = jax.jit(jax.grad(lambda rows: l2_normalize(rows)[:, 1].sum()))(rows)
    np.testing.assert_allclose(grad[:, 1], [1e-20, 1e13, 0, 0.36 / 5e-20, 0.36 / 5], rtol=1e-5)


@pytest.mark.parametrize(("count", "value"), [(100_000, 1.0), (4000, 20.0)])
def test_means_of_a_hub_in_float16_do_not_overflow(count, value):
    star = jsage.full_block(from_edges(np.arange(1, count + 1), np.zeros(count, int), count + 1))
    h = np.full((count + 1, 1), value, np.float16)

    @jax.jit
    def run(h, star):
        return [each(h, star)[0, 0] for each in (aggregate.mean, aggregate.gcn)]

    for found in run(h, star):
        assert found.dtype == jnp.float16
        np.testing.assert_allclose(found, value, rtol=1e-3)


@pytest.mark.slow
def test_arrays_of_the_host_and_memory_maps_train_and_embed(tmp_path):
    jsage.data.save(tmp_path / "digits", jsage.data.digits())
    graph, features, _, train, *_ = jsage.data.open(tmp_path / "digits")
    assert isinstance(features, np.memmap)
    one = jsage.GraphSAGE(hidden=4, out=10)
    params = jax.jit(one.init)(jax.random.key(0), features, (jsage.full_block(graph),) * 2)
    block, _ = DRAWN(jax.random.key(0), graph, train[:8], fanouts=(2, 2))
    assert set(np.asarray(block.src).ravel()) <= set(range(graph.num_nodes))
    seeds, _ = jsage.epoch(jax.random.key(0), train, 32)
    assert seeds.shape == (4, 32)
    assert jsage.embed_all(one, params, graph, features, nodes=train[:3]).shape == (3, 10)


def test_features_of_scipy_are_taken_wherever_a_host_function_takes_arrays(tmp_path):
    graph, rows = GRAPH, np.eye(GRAPH.num_nodes, 6, dtype=np.float32)
    sparse, one = scipy.sparse.csr_matrix(rows), jsage.GraphSAGE(hidden=3, out=2)
    shapes = jax.eval_shape(one.init, jax.random.key(0), rows, (jsage.full_block(graph),) * 2)
    params = reference.filled(shapes)

    def all_of(table, path):
        jsage.infer.embed_to_file(str(tmp_path / path), one, params, graph, table)
        new = jsage.NewNodes(table[:2], [0, -1], [-1, -2], {"weight": np.ones(2, np.float32)})
        yield jsage.embed_all(one, params, graph, table)
        yield jsage.embed_new(one, params, graph, table, new, fanouts=(2, 2))
        yield jsage.data.to_device_table(table, lanes=4)
        yield fit_scaling(table)(table)
        yield fit_scaling(table, np.arange(4), "columns")(table)
        yield np.load(tmp_path / path)

    for found, expected in zip(all_of(sparse, "one.npy"), all_of(rows, "two.npy"), strict=True):
        np.testing.assert_array_equal(found, expected)
