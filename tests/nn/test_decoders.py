"""Decoders against one pair at a time in float64; how they broadcast, what they hold, and their gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import filled

from jsage.metrics import rank_all
from jsage.nn import MLP, Bilinear, DistMult, cosine, dot

B, Q, D, RELATIONS = 3, 4, 5, 6
RNG = np.random.default_rng(0)
X, Y = (RNG.normal(size=(n, D)).astype(np.float32) for n in (B, B * Q))
Y = Y.reshape(B, Q, D)
RELATION = np.array([5, 0, 2], np.int32)


def plain(function):
    """A head without parameters, called as a module is."""
    return {}, jax.jit(lambda params, x, y: function(x, y))


def module(head, *extra):
    params = filled(jax.eval_shape(head.init, jax.random.key(0), X, Y, *extra))  # biases are not 0
    return params, jax.jit(lambda params, x, y: head.apply(params, x, y, *extra))


def weights(params) -> dict[str, np.ndarray]:
    flat = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(k.key for k in path[1:]): np.asarray(p, np.float64) for path, p in flat}


def layer(w, name, rows):
    return rows @ w[f"{name}/kernel"] + w.get(f"{name}/bias", 0)


def relu(rows):
    return np.maximum(rows, 0)


HEADS = {
    "dot": (plain(dot), lambda w, x, y, b: x @ y),
    "cosine": (plain(cosine), lambda w, x, y, b: x @ y / np.linalg.norm(x) / np.linalg.norm(y)),
    "bilinear": (module(Bilinear()), lambda w, x, y, b: x @ w["dense/kernel"] @ y),
    "distmult": (
        module(DistMult(RELATIONS), jax.device_put(RELATION)),
        lambda w, x, y, b: (x * w["relations"][RELATION[b]] * y).sum(),
    ),
    "mlp": (
        module(MLP(hidden=7)),
        lambda w, x, y, b: layer(w, "dense_1", relu(layer(w, "left", x) + layer(w, "right", y))).item(),
    ),
    "mlp of 3, symmetric": (
        module(MLP(hidden=7, num_layers=3, symmetric=True)),
        lambda w, x, y, b: layer(
            w, "dense_2", relu(layer(w, "dense_1", relu(layer(w, "pair", x * y))))
        ).item(),
    ),
    "mlp of 1": (
        module(MLP(hidden=7, num_layers=1)),
        lambda w, x, y, b: (layer(w, "left", x) + layer(w, "right", y)).item(),
    ),
}
"""name -> ((params, apply), (weights, x [d], y [d], row) -> score in float64)"""

heads = pytest.mark.parametrize("name", HEADS)


@pytest.mark.slow
@heads
def test_a_score_is_the_closed_form(name: str):
    (params, apply), reference = HEADS[name]
    w, x, y = weights(params), X.astype(float), Y.astype(float)
    expected = [[reference(w, x[b], y[b, q], b) for q in range(Q)] for b in range(B)]
    got = apply(params, X, Y)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    one = apply(params, X, Y[:, 0])  # [b, d] with [b, d]
    np.testing.assert_allclose(one, np.array(expected)[:, 0], rtol=1e-4, atol=1e-4)
    half = apply(params, *(v.astype(jnp.bfloat16) for v in (X, Y)))
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, expected, rtol=0.1, atol=0.15)


@heads
def test_all_against_all(name: str):
    (params, apply), reference = HEADS[name]
    if name == "distmult":
        head, relation = DistMult(RELATIONS), jax.device_put(RELATION[:, None])
        apply = jax.jit(lambda params, x, y: head.apply(params, x, y, relation))
    w, others = weights(params), Y.reshape(-1, D)
    got = apply(params, X[:, None], others[None])
    expected = [[reference(w, x, y, b) for y in others.astype(float)] for b, x in enumerate(X.astype(float))]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["dot", "cosine", "bilinear", "distmult"])
def test_products_hold_no_copy_of_the_rows_for_each_pair(name: str):
    """No value of the program, all inner ones included, is as large as `[b, n, d]`."""
    params, apply = HEADS[name][0]
    if name == "distmult":
        head, relation = DistMult(RELATIONS), jax.device_put(RELATION[:, None])
        apply = lambda params, x, y: head.apply(params, x, y, relation)  # noqa: E731
    n = 50
    rows = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    program = jax.make_jaxpr(apply)(params, rows((B, 1, D)), rows((1, n, D)))
    assert B * n <= max(sizes(program.jaxpr)) <= n * D  # the rows of y, of which there are fewer than pairs


def sizes(jaxpr) -> list[int]:
    given = [value for equation in jaxpr.eqns for value in jax.tree.leaves([*equation.params.values()])]
    inner = [getattr(value, "jaxpr", value) for value in given if hasattr(value, "eqns")]
    own = [out.aval.size for equation in jaxpr.eqns for out in equation.outvars]
    return own + [size for program in inner for size in sizes(program)]


@pytest.mark.parametrize("name", ["dot", "cosine", "distmult", "mlp of 3, symmetric"])
def test_symmetric_heads(name: str):
    params, apply = HEADS[name][0]
    x, y = X, Y[:, 0]
    np.testing.assert_allclose(apply(params, x, y), apply(params, y, x), rtol=1e-5)


@pytest.mark.parametrize("name", ["bilinear", "mlp"])
def test_heads_that_tell_the_ends_apart(name: str):
    params, apply = HEADS[name][0]
    x, y = X, Y[:, 0]
    assert not np.allclose(apply(params, x, y), apply(params, y, x), rtol=0.1)


def test_a_relation_may_go_with_either_side():
    head, params = DistMult(RELATIONS), HEADS["distmult"][0][0]
    x, y, relation, apply = X, Y, RELATION, jax.jit(head.apply)
    wide = np.array(np.broadcast_to(relation[:, None], (B, Q)))
    np.testing.assert_allclose(apply(params, x, y, relation), apply(params, x, y, wide), rtol=1e-5)
    np.testing.assert_allclose(apply(params, x, y, relation), apply(params, y, x, relation), rtol=1e-5)
    with pytest.raises(ValueError, match=r"row of x \(3,\) or of y \(3, 4\), got shape \(4,\)"):
        apply(params, x, y, np.zeros(4, np.int32))


def test_relations_train_apart():
    head, params = DistMult(RELATIONS), HEADS["distmult"][0][0]
    slope = jax.jit(jax.grad(lambda p, *given: head.apply(p, *given).sum()))
    moved = np.abs(slope(params, X, Y, RELATION)["params"]["relations"]).sum(1) > 0
    assert np.flatnonzero(moved).tolist() == sorted(RELATION)


def test_cosine_at_zero_and_at_extremes():
    rows = np.array([[0.0, 0.0], [3e30, -4e30], [3e-30, 4e-30]], np.float32)
    others = np.array([[1.0, 1.0], [3e30, -4e30], [-3e30, -4e30]], np.float32)
    score, pull = jax.jit(cosine), jax.jit(jax.grad(lambda x, y: cosine(x, y).sum(), argnums=(0, 1)))
    np.testing.assert_allclose(score(rows, others), [0, 1, -1], rtol=1e-6)
    slopes = [np.asarray(slope) for slope in pull(rows, others)]
    assert all(np.isfinite(slope).all() for slope in slopes)
    assert not slopes[0][0].any()
    x, y = X, Y[:, 0]
    slopes = np.asarray(pull(x, y)[0])
    np.testing.assert_allclose((slopes * x).sum(1), 0, atol=1e-6)  # lengths do not matter
    for i in range(D):
        step = np.zeros(D, np.float32)
        step[i] = 0.01
        near = [np.asarray(score(x + s, y)) for s in (step, -step)]
        np.testing.assert_allclose(slopes[:, i], (near[0] - near[1]) / 0.02, atol=1e-3)


def test_a_decoder_ranks_in_chunks():
    head, params = DistMult(RELATIONS), HEADS["distmult"][0][0]
    table, relation = Y.reshape(-1, D), jax.device_put(RELATION[:, None])

    @jax.jit
    def rank(params, x, table, targets):
        def score(ids):
            return head.apply(params, x[:, None], table[ids][None], relation)

        return rank_all(score, targets, B * Q, chunk=5).rank

    targets = np.array([0, 11, 5])
    scores = np.asarray(jax.jit(head.apply)(params, X[:, None], table[None], relation))
    expected = 1 + (scores > scores[np.arange(B), targets][:, None]).sum(1)
    np.testing.assert_array_equal(rank(params, X, table, targets), expected)


def test_dropout_needs_its_stream_and_changes_scores():
    head, x, y = MLP(hidden=64, dropout=0.5), X, Y
    params = jax.jit(head.init)(jax.random.key(0), x, y)
    dropped = jax.jit(partial(head.apply, deterministic=False))
    first, second = (dropped(params, x, y, rngs={"dropout": jax.random.key(k)}) for k in (0, 1))
    assert not np.allclose(first, second)
    same = jax.jit(head.apply)
    np.testing.assert_array_equal(same(params, x, y), same(params, x, y))


def test_shapes_that_make_no_pairs_are_told():
    rows, key = partial(jax.ShapeDtypeStruct, dtype=jnp.float32), jax.random.key(0)
    x, y = rows((3, 5)), rows((4, 5))
    for head in (dot, cosine):
        with pytest.raises(
            ValueError, match=r"\(3, 5\) and \(4, 5\) make no pairs.*x\[:, None\] and y\[None\]"
        ):
            jax.eval_shape(head, x, y)
        with pytest.raises(ValueError, match=r"one width, got \(3, 5\) and \(3, 6\)"):
            jax.eval_shape(head, x, rows((3, 6)))
    for symmetric in (False, True):
        with pytest.raises(ValueError, match="make no pairs"):
            jax.eval_shape(MLP(hidden=2, symmetric=symmetric).init, key, x, y)
    with pytest.raises(ValueError, match="at least one layer, got num_layers=0"):
        jax.eval_shape(MLP(hidden=2, num_layers=0).init, key, x, x)
