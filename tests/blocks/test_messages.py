"""Messages of one's own on every layout: derivatives, dtypes, other reductions, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import AWKWARD, NUM_NODES, features

from jsage.blocks import aggregate, as_segments, as_tree, sliced_full_block
from jsage.blocks.layout import check_reduce
from jsage.blocks.reductions import MAX, SOFTMAX_SUM, SUM, Reduction, where
from jsage.graph import from_edges
from jsage.sampling import full_block, sample_blocks
from jsage.sampling.exact import StreamedBlock

SRC, DST = (
    np.concatenate([ends[i] + NUM_NODES * n for n, ends in enumerate(AWKWARD.values())]) for i in (0, 1)
)
SRC = np.where(SRC == DST, (SRC + 1) % NUM_NODES, SRC)  # no loops: two ends differ
NODES, D = NUM_NODES * len(AWKWARD), 6
H = features(3, NODES, D)
COTANGENT = features(4, NODES, D)


def whole(**data):
    """The same edges on each layout, with the rows that it reads."""
    graph, nodes = from_edges(SRC, DST, NODES, **data), jnp.arange(NODES)

    @jax.jit
    def drawn(graph):
        (block,) = sample_blocks(jax.random.key(0), graph, nodes, (int(np.bincount(DST).max()),))
        ids, tree = as_tree(block)
        return (block, nodes), (tree, ids), (as_segments(block), nodes), graph.degrees(nodes)

    *found, degree = drawn(graph)
    others = full_block(graph), sliced_full_block(graph, rows=4, limit=3), StreamedBlock(graph, nodes, degree)
    names = "indexed", "tree", "segments", "list", "sliced", "streamed"
    return dict(zip(names, [*found, *((block, nodes) for block in others)], strict=True))


BLOCKS = whole()
TRAINED = [name for name in BLOCKS if name != "streamed"]


def reduced(message, reduction, name, h=H):
    block, ids = BLOCKS[name]
    h = jax.tree.map(lambda x: jnp.asarray(x)[ids], h)
    return block.reduce(message, reduction, jax.tree.map(block.own, h), h)


@pytest.mark.parametrize("name", TRAINED)
def test_each_winner_of_a_maximum_gets_its_gradient_however_messages_are_rounded(name):
    """`src * dst + 0.37 src` is rounded once or twice as it is compiled; the reference is in float64."""
    sent = H[SRC].astype(float) * H[DST] + 0.37 * H[SRC]
    top = np.full((NODES, D), -np.inf)
    np.maximum.at(top, DST, sent)
    won = sent > top[DST] - 1e-9  # parallel edges tie
    ties = np.zeros((NODES, D))
    np.add.at(ties, DST, won)
    pulled, expected = won * (COTANGENT / np.maximum(ties, 1))[DST], np.zeros((NODES, D))
    np.add.at(expected, SRC, pulled * (H[DST] + 0.37))
    np.add.at(expected, DST, pulled * H[SRC])

    def loss(h):
        return (COTANGENT * reduced(lambda dst, src, edge: src * dst + src * 0.37, MAX, name, h)).sum()

    fused = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
    found = jax.jit(jax.grad(loss), compiler_options=fused)(H)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TRAINED)
def test_padding_reaches_no_parameter_where_a_message_has_no_derivative_at_zero(name):
    """The distance of two ends, scaled by a parameter; a hop in which nothing is valid is one more."""

    def loss(scale, empty):
        block, ids = BLOCKS[name]
        if empty and hasattr(block, "mask"):
            block = block._replace(mask=block.mask & False)
        send = lambda dst, src, edge: jnp.linalg.norm((src - dst) * scale[None], axis=1)  # noqa: E731
        h = jnp.asarray(H)[ids]
        return block.reduce(send, SUM, block.own(h), h).sum()

    scale = np.linspace(1, 2, D)
    apart = (H[SRC] - H[DST]).astype(float)
    expected = (scale * apart**2 / np.linalg.norm(apart * scale, axis=1, keepdims=True)).sum(0)
    run = jax.jit(jax.grad(loss), static_argnums=1)
    np.testing.assert_allclose(run(jnp.asarray(scale, jnp.float32), False), expected, rtol=1e-5)
    if name in ("indexed", "tree"):
        assert not np.any(run(jnp.asarray(scale, jnp.float32), True))


SQUARES = Reduction(
    start=lambda message, num_dst: (jnp.zeros((num_dst, *message.shape[1:])), jnp.zeros(num_dst)),
    step=lambda state, message, mask: (
        state[0] + where(mask, message, 0) ** 2,
        state[1] + (1 if mask is None else mask),
    ),
    finish=lambda state, degree, message: state[0] / jnp.maximum(state[1], 1)[:, None],
    join=lambda a, b: (a[0] + b[0], a[1] + b[1]),
)
"""The mean of squares, by the four functions that a reduction needs."""


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_a_reduction_of_four_functions_runs_on_every_layout(name):
    total = np.zeros((NODES, D))
    np.add.at(total, DST, H[SRC].astype(float) ** 2)
    degree = np.bincount(DST, minlength=NODES)
    send = lambda dst, src, edge: 1.0 * src  # noqa: E731
    expected = total / np.maximum(degree, 1)[:, None]
    found = jax.jit(lambda h: reduced(send, SQUARES, name, h))(H)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    grad = jax.jit(jax.grad(lambda h: (COTANGENT * reduced(send, SQUARES, name, h)).sum()))
    if name == "sliced":
        with pytest.raises(TypeError, match="give the Reduction a Gradient"):
            grad(H)
    elif name in TRAINED:
        expected = np.zeros((NODES, D))
        np.add.at(expected, SRC, 2 * H[SRC] * (COTANGENT / np.maximum(degree, 1)[:, None])[DST])
        np.testing.assert_allclose(grad(H), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_whole_numbers_are_exact_and_have_no_gradient(name):
    """Sums of numbers that float32 does not have, maxima below 0; beside rows that are trained."""
    ids = (-(2**25) - 3 * np.arange(NODES * D).reshape(NODES, D)).astype(np.int32)

    def run(h, ids):
        send = lambda dst, src, edge: {"h": src[0], "id": src[1] + 1}  # noqa: E731
        total, top = (reduced(send, each, name, (h, ids)) for each in (SUM, MAX))
        block, at = BLOCKS[name]
        rows = jnp.asarray(ids)[at]
        plain = aggregate.sum(rows, block), aggregate.max(rows, block)
        return (total["h"] + top["h"]).sum(), (total["id"], top["id"], *plain)

    total, top = np.zeros((NODES, D), np.int64), np.full((NODES, D), np.iinfo(np.int32).min)
    np.add.at(total, DST, ids[SRC])
    np.maximum.at(top, DST, ids[SRC])
    degree = np.bincount(DST, minlength=NODES)[:, None]
    top = np.where(degree > 0, top, 0)
    expected = total + degree, np.where(degree > 0, top + 1, 0), total, top
    if name == "streamed":
        _, found = jax.jit(run)(H, ids)
    else:
        (_, found), grad = jax.jit(jax.value_and_grad(run, has_aux=True))(H, ids)
        np.testing.assert_allclose(grad.sum(0), SRC.size + np.full(D, (degree > 0).sum()), rtol=1e-5)
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got, want.astype(np.int32))


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_rows_of_several_axes_are_aggregated_as_flat_ones(name):
    block, ids = BLOCKS[name]

    @jax.jit
    def run(h):
        return [each(h[ids], block) for each in (aggregate.mean, aggregate.gcn, aggregate.max)]

    for flat, found in zip(run(H), run(H.reshape(NODES, 2, 3)), strict=True):
        np.testing.assert_allclose(found.reshape(NODES, D), flat, rtol=1e-5, atol=1e-6)


def test_layouts_say_alike_which_data_edges_have():
    data = {"weight": np.linspace(1, 2, SRC.size), "age": np.arange(SRC.size)}
    for block, _ in whole(**data).values():
        assert set(block.edge_data) == {"weight", "age"}


def test_a_graph_without_edges_has_data_of_none():
    graph = from_edges([], [], 3, weight=np.zeros(0), age=np.zeros((0, 2), np.float32))
    block, h = sliced_full_block(graph), np.ones((3, 2), np.float32)

    @jax.jit
    def run(h, block):
        send = lambda dst, src, edge: src * edge["weight"][:, None] + edge["age"]  # noqa: E731
        return block.reduce(send, SUM, None, h)

    assert not np.any(run(h, block))


def test_host_rows_need_no_jit():
    block, _ = BLOCKS["indexed"]
    np.testing.assert_array_equal(block.own(H), H)
    assert aggregate.sum(H, block).shape == (NODES, D)


def same(dst, src, edge):
    return src


REFUSED = {
    "rows of another size": (
        lambda h, own: (same, SUM, own[:-1], h),
        ValueError,
        "must have one row a",
    ),
    "own of another size": (
        lambda h, own: (same, SUM, None, h, own[:-1]),
        ValueError,
        "own must have one row",
    ),
    "no row axis": (
        lambda h, own: (lambda dst, src, edge: src.sum(), SUM, None, h),
        ValueError,
        r"must have one row an edge, \[\d+, ...\], got \[\]",
    ),
    "a logit a column": (
        lambda h, own: (lambda dst, src, edge: (src[:, :1], src), SOFTMAX_SUM, None, h),
        ValueError,
        r"got float32\[\d+, 1\] and float32\[\d+, 6\]",
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("what", REFUSED)
def test_refused(name, what):
    block, ids = BLOCKS[name]
    given, error, match = REFUSED[what]
    with pytest.raises(error, match=match):
        jax.eval_shape(lambda h: block.reduce(*given(h[ids], block.own(h[ids]))), H)


def test_a_reduction_is_asked_for_by_its_object():
    with pytest.raises(TypeError, match=r"such as jsage.blocks.SUM, got 'sum'"):
        check_reduce(BLOCKS["list"][0], "sum", None, None)
