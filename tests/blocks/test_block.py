"""What a block answers is the same in every layout: a loop in NumPy says what."""

from collections import Counter
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import AWKWARD, FANOUT, LAYOUTS, NUM_NODES, WIDTH, features, hop, lay, listed, messages

from jsage.blocks import Indexed, Segments, Tree, as_segments, as_tree, edge_list
from jsage.blocks.layout import Block

ROWS = NUM_NODES * (1 + FANOUT)
SEGMENTS = ["segments of indexed", "segments of tree"]


@cache
def answers(layout: str):
    """Everything that a block answers, in one compiled function for all graphs."""

    def query(block: Indexed, table: jax.Array):
        h, view = lay(layout, block, table)
        rows, read_by = view.sources(h)
        slots, mask = listed(h, view, FANOUT)
        return {
            "own": view.own(h),
            "sum": view.sum(h),
            "max": view.max(h),
            "degrees": view.degrees(),
            "slots": slots,
            "mask": mask,
            "sources": (rows, read_by.sum(rows), read_by.max(rows)),
        }

    return jax.jit(query)


@pytest.fixture(params=[False, True], ids=["plain", "weighted"])
def weighted(request) -> bool:
    return request.param


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", AWKWARD)
def test_every_answer_is_that_of_a_loop(name: str, layout: str, weighted: bool):
    block, table = jax.tree.map(np.asarray, hop(name, weighted=weighted)), features(0, NUM_NODES + 1)
    got = jax.tree.map(np.asarray, answers(layout)(block, table))
    for row in range(block.num_dst):
        expected = messages(block, table, row)
        n = len(expected)
        assert got["degrees"][row] == n
        np.testing.assert_array_equal(got["own"][row], table[block.dst[row]])
        np.testing.assert_allclose(got["sum"][row], expected.sum(0), atol=1e-5)
        np.testing.assert_allclose(got["max"][row], expected.max(0) if n else np.zeros(WIDTH), atol=1e-5)
        np.testing.assert_array_equal(got["mask"][row], np.arange(FANOUT) < n)
        np.testing.assert_allclose(got["slots"][row, :n], expected, atol=1e-6)
        assert not np.any(got["slots"][row, n:])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rows", [NUM_NODES + 1, ROWS + 1], ids=["small table", "large table"])
def test_sources_hold_what_is_read_and_zeros(layout: str, rows: int):
    """Where the table is larger than what is read, `Indexed` copies; never is an unread row passed on."""
    block, table = hop("parallel edges"), features(0, rows)
    unread = np.setdiff1d(np.arange(rows), [*block.dst, *np.asarray(block.src)[np.asarray(block.mask)]])
    padded = block._replace(src=jnp.where(block.mask, block.src, unread[-1]))
    table[unread] = np.nan
    got = answers(layout)(padded, table)
    source_rows, total, top = got["sources"]
    assert source_rows.shape[0] <= ROWS or layout == "segments of indexed"
    assert np.isfinite(source_rows).all()
    np.testing.assert_allclose(total, got["sum"], atol=1e-6)
    np.testing.assert_allclose(top, got["max"], atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["no edges", "parallel edges", "random"])
def test_read_marks_the_rows_of_valid_destinations(name: str, layout: str):
    block = hop(name)
    src, mask, dst = (np.asarray(x) for x in (block.src, block.mask, block.dst))
    valid = np.arange(NUM_NODES) % 3 == 0
    positions = {*dst[valid], *src[valid][mask[valid]]}
    h, view = lay(layout, block, jnp.arange(NUM_NODES + 1.0)[:, None])  # a row's value is its position
    read = np.asarray(view.read(jnp.asarray(valid), h.shape[0]))
    assert set(np.asarray(h)[read, 0]) == positions
    if "tree" in layout:  # one row a slot, so each is marked for itself
        np.testing.assert_array_equal(read, np.concatenate([valid, (mask & valid[:, None]).ravel()]))
    nobody = view.read(jnp.zeros(NUM_NODES, bool), h.shape[0])
    assert not nobody.any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_a_block(layout: str):
    _, view = lay(layout, hop("random"), jnp.zeros((NUM_NODES, 1)))
    assert isinstance(view, Block)
    assert view.num_dst == NUM_NODES


@pytest.mark.parametrize("reduce", ["sum", "max"])
@pytest.mark.parametrize("layout", ["indexed", "segments of indexed"])
def test_bfloat16_gradients_are_summed_in_float32(layout: str, reduce: str):
    """4096 destinations that read one row: its gradient is the sum of 4096 ones."""
    n = 4096
    block = Indexed(jnp.zeros(n, jnp.int32), jnp.ones((n, 1), jnp.int32), jnp.ones((n, 1), bool))
    table = jnp.ones((2, 3), jnp.bfloat16)
    _, view = lay(layout, block, table)
    _, pull = jax.vjp(lambda h: getattr(view, reduce)(h), table)
    (grad,) = pull(jnp.ones((n, 3), jnp.bfloat16))
    np.testing.assert_array_equal(grad.astype(jnp.float32), [[0] * 3, [n] * 3])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_implicit_promotion(layout: str, weighted: bool, strict_dtypes):
    block = hop("random", weighted=weighted)
    for dtype in (jnp.float32, jnp.bfloat16):
        got = jax.eval_shape(answers(layout).__wrapped__, block, jnp.asarray(features(0)).astype(dtype))
        assert got["degrees"].dtype == jnp.int32
        assert {got[name].dtype for name in ("own", "sum", "max", "slots")} == {jnp.dtype(dtype)}


def test_as_tree_reads_destinations_then_slots():
    block = hop("random", weighted=True)
    ids, tree = as_tree(block)
    np.testing.assert_array_equal(ids[:NUM_NODES], block.dst)
    np.testing.assert_array_equal(ids[NUM_NODES:].reshape(NUM_NODES, FANOUT), block.src)
    np.testing.assert_array_equal(tree.mask, block.mask)
    np.testing.assert_array_equal(tree.edge_data["weight"], block.edge_data["weight"])


@pytest.mark.parametrize("name", AWKWARD)
def test_as_segments_has_the_valid_edges_and_no_others(name: str):
    block = hop(name)
    src, dst, mask = (np.asarray(x) for x in (block.src, np.arange(NUM_NODES)[:, None], block.mask))
    expected = Counter((int(src[i, j]), int(i)) for i, j in np.argwhere(mask))
    flat = jax.tree.map(np.asarray, as_segments(block))
    valid = np.asarray(flat.dst) < NUM_NODES
    assert Counter(zip(flat.src[valid].tolist(), flat.dst[valid].tolist(), strict=True)) == expected
    assert (flat.dst[~valid] == NUM_NODES).all()
    np.testing.assert_array_equal(flat.degree, mask.sum(1))
    np.testing.assert_array_equal(flat.order >= 0, mask)
    np.testing.assert_array_equal(np.where(mask, flat.dst[flat.order], dst), dst + 0 * mask)


def test_as_segments_keeps_edge_data_of_any_width():
    block = hop("random")
    data = {"type": block.src * 2, "vector": jnp.stack([block.src, block.mask.astype(jnp.int32)], 2)}
    flat = as_segments(block._replace(edge_data=data))
    np.testing.assert_array_equal(flat.edge_data["type"], flat.src * 2)
    np.testing.assert_array_equal(flat.edge_data["vector"][:, 0], flat.src)
    np.testing.assert_array_equal(flat.edge_data["vector"][:, 1] == 1, flat.dst < NUM_NODES)


@pytest.mark.parametrize("layout", SEGMENTS)
@pytest.mark.parametrize("name", AWKWARD)
def test_segment_code_runs_unchanged(name: str, layout: str):
    """Modules written over `(h, src, dst, num_segments)` need no change for a sampled block."""
    block, table = hop(name), jnp.asarray(features(0))
    h, flat = lay(layout, block, table)
    src, dst, n = flat.src, flat.dst, flat.num_dst
    total = jax.ops.segment_sum(h[src], dst, n)
    count = jax.ops.segment_sum(jnp.ones(src.shape), dst, n)
    top = jax.ops.segment_max(h[src], dst, n)
    expected = [messages(block, table, row) for row in range(NUM_NODES)]
    np.testing.assert_array_equal(count, [len(rows) for rows in expected])
    np.testing.assert_allclose(total, [rows.sum(0) for rows in expected], atol=1e-5)
    bottom = np.full((1, WIDTH), -np.inf)
    np.testing.assert_allclose(top, [np.concatenate([rows, bottom]).max(0) for rows in expected], atol=1e-6)


def test_an_edge_list_ignores_edges_into_no_destination():
    src, dst = jnp.array([0, 1, 2, 1]), jnp.array([1, 2, 1, 2])
    table = jnp.array([[1.0], [jnp.nan], [5.0]])
    block = edge_list(src, dst, num_dst=2)
    assert block.degrees().dtype == jnp.int32
    np.testing.assert_array_equal(block.degrees(), [0, 2])
    np.testing.assert_array_equal(block.sum(table), [[0], [6]])
    np.testing.assert_array_equal(block.max(table), [[0], [5]])
    grad = jax.grad(lambda h: (block.sum(h) + block.max(h)).sum())(table)
    np.testing.assert_array_equal(grad, [[1], [0], [2]])


@pytest.mark.parametrize("rows", [ROWS - 1, ROWS + 1, NUM_NODES])
@pytest.mark.parametrize("method", ["sum", "max", "sources"])
def test_a_tree_refuses_another_number_of_rows(method: str, rows: int):
    _, tree = as_tree(hop("random"))
    message = (
        rf"{NUM_NODES} destinations x {FANOUT} slots reads {ROWS} rows .* got {rows}: pass what the last"
    )
    with pytest.raises(ValueError, match=message):
        getattr(tree, method)(jnp.zeros((rows, 1)))


def test_slots_of_an_edge_list_need_their_order():
    block = edge_list(jnp.array([0]), jnp.array([1]), num_dst=2)
    with pytest.raises(TypeError, match=r"no `order` table: build it by full_block\(graph, slots=True\)"):
        listed(jnp.ones((2, 1)), block, 1)


def test_blocks_are_pytrees_of_arrays():
    for block in (hop("random", weighted=True), Tree(hop("random").mask), as_segments(hop("random"))):
        leaves, tree = jax.tree.flatten(block)
        assert all(isinstance(leaf, jax.Array) for leaf in leaves)
        assert type(jax.tree.unflatten(tree, leaves)) in (Indexed, Tree, Segments)
