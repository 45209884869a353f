"""Decoders against one pair at a time in float64; how they broadcast, what they hold, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from jsage.metrics import rank_all
from jsage.nn import MLP, Bilinear, DistMult, cosine, dot

B, Q, D, RELATIONS = 3, 4, 5, 6
RNG = np.random.default_rng(0)
X, Y = (RNG.normal(size=(n, D)).astype(np.float32) for n in (B, B * Q))
Y = Y.reshape(B, Q, D)
RELATION = np.array([5, 0, 2], np.int32)


def plain(function):
    """A head without parameters, called as a module is."""
    return {}, lambda params, x, y: function(x, y)


def module(head, *extra):
    keys = jax.random.split(jax.random.key(0), 2)
    params = head.init(keys[0], jnp.asarray(X), jnp.asarray(Y), *extra)
    leaves, tree = jax.tree.flatten(params)  # biases too are something other than 0
    leaves = [jax.random.normal(jax.random.fold_in(keys[1], i), p.shape) for i, p in enumerate(leaves)]
    return jax.tree.unflatten(tree, leaves), lambda params, x, y: head.apply(params, x, y, *extra)


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
        module(DistMult(RELATIONS), jnp.asarray(RELATION)),
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


@heads
def test_a_score_is_the_closed_form(name: str):
    (params, apply), reference = HEADS[name]
    w, x, y = weights(params), X.astype(float), Y.astype(float)
    expected = [[reference(w, x[b], y[b, q], b) for q in range(Q)] for b in range(B)]
    got = apply(params, jnp.asarray(X), jnp.asarray(Y))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    one = apply(params, jnp.asarray(X), jnp.asarray(Y[:, 0]))  # [b, d] with [b, d]
    np.testing.assert_allclose(one, np.array(expected)[:, 0], rtol=1e-4, atol=1e-4)
    half = apply(params, *(jnp.asarray(v, jnp.bfloat16) for v in (X, Y)))
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, expected, rtol=0.1, atol=0.15)


@heads
def test_all_against_all(name: str):
    (params, apply), reference = HEADS[name]
    if name == "distmult":
        head, relation = DistMult(RELATIONS), jnp.asarray(RELATION)[:, None]
        apply = lambda params, x, y: head.apply(params, x, y, relation)  # noqa: E731
    w, others = weights(params), Y.reshape(-1, D)
    got = apply(params, jnp.asarray(X)[:, None], jnp.asarray(others)[None])
    expected = [[reference(w, x, y, b) for y in others.astype(float)] for b, x in enumerate(X.astype(float))]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["dot", "cosine", "bilinear", "distmult"])
def test_products_hold_no_copy_of_the_rows_for_each_pair(name: str):
    """No value of the program, all inner ones included, is as large as `[b, n, d]`."""
    params, apply = HEADS[name][0]
    if name == "distmult":
        head, relation = DistMult(RELATIONS), jnp.asarray(RELATION)[:, None]
        apply = lambda params, x, y: head.apply(params, x, y, relation)  # noqa: E731
    n = 50
    program = jax.make_jaxpr(apply)(params, jnp.zeros((B, 1, D)), jnp.zeros((1, n, D)))
    assert B * n <= max(sizes(program.jaxpr)) <= n * D  # the rows of y, of which there are fewer than pairs


def sizes(jaxpr) -> list[int]:
    inner = [inner for equation in jaxpr.eqns for inner in jaxprs_in_params(equation.params)]
    own = [out.aval.size for equation in jaxpr.eqns for out in equation.outvars]
    return own + [size for program in inner for size in sizes(program)]


@pytest.mark.parametrize("name", ["dot", "cosine", "distmult", "mlp of 3, symmetric"])
def test_symmetric_heads(name: str):
    params, apply = HEADS[name][0]
    x, y = jnp.asarray(X), jnp.asarray(Y[:, 0])
    np.testing.assert_allclose(apply(params, x, y), apply(params, y, x), rtol=1e-5)


@pytest.mark.parametrize("name", ["bilinear", "mlp"])
def test_heads_that_tell_the_ends_apart(name: str):
    params, apply = HEADS[name][0]
    x, y = jnp.asarray(X), jnp.asarray(Y[:, 0])
    assert not np.allclose(apply(params, x, y), apply(params, y, x), rtol=0.1)


def test_a_relation_may_go_with_either_side():
    head, params = DistMult(RELATIONS), HEADS["distmult"][0][0]
    x, y, relation = jnp.asarray(X), jnp.asarray(Y), jnp.asarray(RELATION)
    wide = jnp.broadcast_to(relation[:, None], (B, Q))
    np.testing.assert_allclose(head.apply(params, x, y, relation), head.apply(params, x, y, wide), rtol=1e-5)
    np.testing.assert_allclose(
        head.apply(params, x, y, relation), head.apply(params, y, x, relation), rtol=1e-5
    )
    with pytest.raises(ValueError, match=r"row of x \(3,\) or of y \(3, 4\), got shape \(4,\)"):
        head.apply(params, x, y, jnp.zeros(4, jnp.int32))


def test_relations_train_apart():
    head, params = DistMult(RELATIONS), HEADS["distmult"][0][0]
    slope = jax.grad(lambda p: head.apply(p, jnp.asarray(X), jnp.asarray(Y), jnp.asarray(RELATION)).sum())
    moved = jnp.abs(slope(params)["params"]["relations"]).sum(1) > 0
    assert np.flatnonzero(moved).tolist() == sorted(RELATION)


def test_cosine_at_zero_and_at_extremes():
    rows = jnp.array([[0.0, 0.0], [3e30, -4e30], [3e-30, 4e-30]])
    others = jnp.array([[1.0, 1.0], [3e30, -4e30], [-3e30, -4e30]])
    scores, vjp = jax.vjp(cosine, rows, others)
    np.testing.assert_allclose(scores, [0, 1, -1], rtol=1e-6)
    slopes = vjp(jnp.ones(3))
    assert all(jnp.isfinite(slope).all() for slope in slopes)
    assert not slopes[0][0].any()
    x, y = jnp.asarray(X), jnp.asarray(Y[:, 0])
    along = (jax.grad(lambda x: cosine(x, y).sum())(x) * x).sum(1)
    np.testing.assert_allclose(along, 0, atol=1e-6)  # lengths do not matter
    for i in range(D):
        step = np.zeros(D, np.float32)
        step[i] = 0.01
        near = [cosine(x + jnp.asarray(s)[None], y) for s in (step, -step)]
        slope = jax.grad(lambda x: cosine(x, y).sum())(x)[:, i]
        np.testing.assert_allclose(slope, (near[0] - near[1]) / 0.02, atol=1e-3)


def test_a_decoder_ranks_in_chunks():
    head, params = DistMult(RELATIONS), HEADS["distmult"][0][0]
    table, relation = jnp.asarray(Y.reshape(-1, D)), jnp.asarray(RELATION)[:, None]

    @jax.jit
    def rank(params, x, table, targets):
        def score(ids):
            return head.apply(params, x[:, None], table[ids][None], relation)

        return rank_all(score, targets, B * Q, chunk=5).rank

    targets = np.array([0, 11, 5])
    scores = np.asarray(head.apply(params, jnp.asarray(X)[:, None], table[None], relation))
    expected = 1 + (scores > scores[np.arange(B), targets][:, None]).sum(1)
    np.testing.assert_array_equal(rank(params, jnp.asarray(X), table, jnp.asarray(targets)), expected)


def test_dropout_needs_its_stream_and_changes_scores():
    head, x, y = MLP(hidden=64, dropout=0.5), jnp.asarray(X), jnp.asarray(Y)
    params = head.init(jax.random.key(0), x, y)
    first, second = (
        head.apply(params, x, y, deterministic=False, rngs={"dropout": jax.random.key(k)}) for k in (0, 1)
    )
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(head.apply(params, x, y), head.apply(params, x, y))


def test_shapes_that_make_no_pairs_are_told():
    x, y = jnp.zeros((3, 5)), jnp.zeros((4, 5))
    for head in (dot, cosine):
        with pytest.raises(
            ValueError, match=r"\(3, 5\) and \(4, 5\) make no pairs.*x\[:, None\] and y\[None\]"
        ):
            head(x, y)
        with pytest.raises(ValueError, match=r"one width, got \(3, 5\) and \(3, 6\)"):
            head(x, jnp.zeros((3, 6)))
    for symmetric in (False, True):
        with pytest.raises(ValueError, match="make no pairs"):
            MLP(hidden=2, symmetric=symmetric).init(jax.random.key(0), x, y)
    with pytest.raises(ValueError, match="at least one layer, got num_layers=0"):
        MLP(hidden=2, num_layers=0).init(jax.random.key(0), x, x)
