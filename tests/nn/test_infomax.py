"""Deep Graph Infomax: what is shuffled and what is not, the scores, and that it learns without labels."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import NUM_NODES, features, graph
from scipy import stats
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from jsage.blocks import as_tree
from jsage.data import Mixing, power_law_communities
from jsage.losses import dgi, masked_mean
from jsage.nn import DeepGraphInfomax, GraphSAGE, shuffle_batch, shuffle_patches
from jsage.nn.infomax import summarize
from jsage.sampling import full_block, sample_blocks, sample_compact_blocks
from jsage.train import init_state, make_update

SEEDS, FANOUTS = jax.device_put(np.array([5, 0, 3, 5, 1, 7], np.int32)), (3, 2)
MASK = np.array([True, True, True, True, False, False])
SHUFFLES = {"batch": shuffle_batch, "patches": shuffle_patches}

shuffles = pytest.mark.parametrize("name", SHUFFLES)
compiled = {
    name: jax.jit(lambda key, h, blocks, mask, f=f: f(key, h, blocks, mask)) for name, f in SHUFFLES.items()
}


@cache
def sampled(name: str = "random"):
    return jax.jit(lambda graph: sample_blocks(jax.random.key(0), graph, SEEDS, FANOUTS))(graph(name))


def places(blocks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, liveness and seed of every place of the first block, a destination's own before its slots."""
    first, last = blocks
    valid, owner = list(np.asarray(MASK)), list(range(len(SEEDS)))
    for seed, row in enumerate(np.asarray(last.mask)):
        valid += [bool(slot and MASK[seed]) for slot in row]
        owner += [seed] * len(row)
    for place, row in enumerate(np.asarray(first.mask)):
        valid += [bool(slot and valid[place]) for slot in row]
        owner += [owner[place]] * len(row)
    return np.asarray(as_tree(first)[0]), np.array(valid), np.array(owner)


@shuffles
@pytest.mark.parametrize("case", ["random", "isolated nodes", "one hub", "no edges"])
def test_valid_places_are_permuted_and_the_padding_stays(name: str, case: str):
    h, blocks = features(0), sampled(case)
    same, (first, last) = compiled[name](jax.random.key(3), h, blocks, MASK)
    ids, valid, owner = places(blocks)
    moved = np.asarray(as_tree(first)[0])
    np.testing.assert_array_equal(moved[~valid], ids[~valid])
    groups = [valid] if name == "batch" else [valid & (owner == seed) for seed in range(len(SEEDS))]
    for group in groups:
        np.testing.assert_array_equal(np.sort(moved[group]), np.sort(ids[group]))
    np.testing.assert_array_equal(same, h)
    np.testing.assert_array_equal(first.mask, blocks[0].mask)
    np.testing.assert_array_equal(last.mask, blocks[1].mask)
    if case == "random":
        assert (moved != ids)[valid].mean() > 0.3


def test_every_order_is_equally_likely():
    """Rows of a first block that is a tree: one seed with an invalid slot, and an invalid seed with a valid
    one."""
    blocks = [
        jax.tree.map(lambda x: x, sampled()[1])._replace(mask=np.array([[1, 0, 1, 1], [1, 1, 0, 0]], bool))
    ]
    h = jax.device_put(np.arange(10, dtype=np.float32)[:, None])
    keys = jax.random.split(jax.random.key(0), 24_000)
    mask = jax.device_put(np.array([True, False]))
    rows = jax.jit(jax.vmap(lambda key: shuffle_batch(key, h, blocks, mask)[0][:, 0]))(keys)
    rows, valid = np.asarray(rows, int), [0, 2, 4, 5]
    np.testing.assert_array_equal(
        np.delete(rows, valid, 1), np.tile(np.delete(np.arange(10), valid), (24_000, 1))
    )
    orders = np.unique(rows[:, valid] @ 10 ** np.arange(4), return_counts=True)[1]
    assert len(orders) == 24
    assert stats.chisquare(orders).pvalue > 1e-3


def test_patches_are_shuffled_apart():
    """Two patches of two valid places each: all four outcomes equally often."""
    block = sampled()[1]._replace(mask=np.array([[True], [True]]))
    h = jax.device_put(np.arange(4, dtype=np.float32)[:, None])
    keys = jax.random.split(jax.random.key(1), 8_000)
    turn = jax.vmap(lambda key: shuffle_patches(key, h, [block], jnp.ones(2, bool))[0][:, 0])
    rows = np.asarray(jax.jit(turn)(keys), int)
    outcome = (rows[:, 0] == 2) * 2 + (rows[:, 1] == 3)
    np.testing.assert_array_equal(np.sort(rows[:, [0, 2]], 1), np.tile([0, 2], (8_000, 1)))
    assert stats.chisquare(np.bincount(outcome, minlength=4)).pvalue > 1e-3


def test_over_the_whole_graph_it_shuffles_the_table():
    h, blocks = jax.device_put(features(0)), (full_block(graph("random")),) * 2
    rows, same = compiled["batch"](jax.random.key(0), h, blocks, np.ones(NUM_NODES, bool))
    assert jax.tree.all(jax.tree.map(np.array_equal, tuple(same), blocks))
    assert not np.array_equal(rows, h)
    np.testing.assert_array_equal(np.sort(rows, 0), np.sort(np.asarray(h), 0))
    with pytest.raises(ValueError, match="apart in the trees of sample_blocks, got Segments as block 1"):
        jax.eval_shape(shuffle_patches, jax.random.key(0), h, blocks, np.ones(NUM_NODES, bool))
    with pytest.raises(ValueError, match="shuffled by their ids, which a Segments has none of"):
        jax.eval_shape(shuffle_batch, jax.random.key(0), None, blocks, np.ones(NUM_NODES, bool))


def test_compacted_frontiers_are_shuffled_too():
    h, key = jax.device_put(features(0)), jax.random.key(0)
    compact = jax.jit(lambda graph: sample_compact_blocks(key, graph, SEEDS, FANOUTS, (NUM_NODES,)))
    blocks, fits = compact(graph("random"))
    assert fits
    _, (first, last) = compiled["batch"](key, h, blocks, MASK)
    np.testing.assert_array_equal(last.src, blocks[1].src)
    ids, moved = (np.asarray(as_tree(block)[0]) for block in (blocks[0], first))
    np.testing.assert_array_equal(np.sort(ids), np.sort(moved))
    assert (ids != moved).any()
    with pytest.raises(ValueError, match="got Indexed as block 1: use shuffle_batch"):
        jax.eval_shape(shuffle_patches, jax.random.key(0), h, blocks, MASK)


@cache
def model_of(name: str = "batch"):
    """Parameters, and `(params, h, blocks, mask, key) -> scores`."""
    model = DeepGraphInfomax(GraphSAGE(hidden=6, out=4), corrupt=SHUFFLES[name])
    keys = {"params": jax.random.key(0), "corrupt": jax.random.key(1)}
    params = jax.jit(model.init)(keys, features(0), sampled(), mask=MASK)

    @jax.jit
    def scores(params, h, blocks, mask, key):
        return model.apply(params, h, blocks, mask=mask, rngs={"corrupt": key})

    return params, scores


def test_scores_are_the_bilinear_forms_of_the_paper():
    """The corrupted input is caught on its way to the encoder, which is run on it alone."""
    h, blocks, params = jax.device_put(features(0)), sampled(), model_of()[0]
    encoder = GraphSAGE(hidden=6, out=4)

    @jax.jit
    def run(params, key):
        met = []

        def spy(*given):
            met.append(shuffle_batch(*given))
            return met[-1]

        model = DeepGraphInfomax(encoder, corrupt=spy)
        scores = model.apply(params, h, blocks, mask=jnp.asarray(MASK), rngs={"corrupt": key})
        own = {"params": params["params"]["encoder"]}
        return scores, encoder.apply(own, h, blocks), encoder.apply(own, *met[0])

    got, *embedded = run(params, jax.random.key(5))
    true, false = (np.asarray(rows, float)[MASK] for rows in embedded)
    summary = expit(true.mean(0))
    kernel = np.asarray(params["params"]["discriminator"]["dense"]["kernel"], float)
    for scores, rows in zip(map(np.asarray, got), (true, false), strict=True):
        np.testing.assert_allclose(scores[MASK], rows @ (summary @ kernel), rtol=1e-4, atol=1e-5)
        assert not scores[~MASK].any()
    assert not np.allclose(*got)
    np.testing.assert_allclose(
        jax.jit(summarize)(true.astype(np.float32), np.ones(4, bool)), summary, rtol=1e-5
    )


def test_another_key_corrupts_otherwise_and_leaves_the_true_scores():
    (params, scores), h = model_of(), features(0)
    one, two = (scores(params, h, sampled(), MASK, jax.random.key(k)) for k in (0, 1))
    np.testing.assert_array_equal(one[0], two[0])
    assert not np.allclose(one[1], two[1])


@pytest.mark.slow
@shuffles
def test_padding_changes_neither_scores_nor_gradients(name: str):
    """Rows that padded slots read are poisoned; those of an invalid seed too, which reach no valid score."""
    blocks = [sampled()[1]._replace(mask=jax.device_put(np.array([[1, 0, 1], [0, 0, 0], [1, 0, 1]], bool)))]
    mask = jax.device_put(np.array([True, True, False]))
    padded, invalid = np.zeros(12, bool), np.zeros(12, bool)
    padded[[4, 6, 7, 8, 10]] = True
    invalid[[2, 9, 11]] = (
        True  # the invalid seed's own row and its slots: legal, so they may hold anything finite
    )
    clean = features(0, rows=12)
    dirty = np.where(padded[:, None], np.nan, clean)
    dirty = np.where(invalid[:, None], 1e6, dirty)
    model = DeepGraphInfomax(GraphSAGE(hidden=6, out=4, num_layers=1), corrupt=SHUFFLES[name])
    params = jax.jit(model.init)({"params": jax.random.key(0), "corrupt": jax.random.key(1)}, clean, blocks)

    def loss(params, h):
        scores = model.apply(params, h, blocks, mask=mask, rngs={"corrupt": jax.random.key(2)})
        return masked_mean(dgi(*scores, mask), mask)

    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    (value, (slopes, rows)), (same, (others, dirty_rows)) = both(params, clean), both(params, dirty)
    assert value == same
    for one, other in zip(jax.tree.leaves(slopes), jax.tree.leaves(others), strict=True):
        np.testing.assert_array_equal(one, other)
        assert np.asarray(one).any()
    rows = np.asarray(rows)
    np.testing.assert_array_equal(rows, dirty_rows)
    assert not rows[padded | invalid].any()
    assert (rows[~(padded | invalid)] != 0).all()


@shuffles
def test_what_invalid_seeds_alone_read_reaches_no_valid_score(name: str):
    """Node 7 is isolated and an invalid seed: neither the summary nor the shuffle knows it."""
    h, blocks = features(0), sampled("isolated nodes")
    poisoned = np.where(np.arange(NUM_NODES)[:, None] == 7, np.nan, h)
    params, scores = model_of(name)
    ids, valid, _ = places(blocks)
    assert 7 in ids[~valid]
    assert 7 not in ids[valid]
    one, two = (scores(params, rows, blocks, MASK, jax.random.key(7)) for rows in (h, poisoned))
    np.testing.assert_array_equal(one, two)
    assert np.asarray(one)[:, MASK].all()


def test_with_no_valid_seed_all_scores_are_0():
    (params, scores), nothing = model_of(), np.zeros(len(SEEDS), bool)
    got = scores(params, features(0), sampled(), nothing, jax.random.key(0))
    assert not np.any(got)


def test_embeddings_by_identity_are_shuffled_by_id():
    model = DeepGraphInfomax(GraphSAGE(hidden=6, out=4, identity=(NUM_NODES, 5)))
    keys = {"params": jax.random.key(0), "corrupt": jax.random.key(1)}
    (true, false), _ = jax.jit(model.init_with_output)(keys, None, sampled())
    assert not np.allclose(true, false)


@shuffles
def test_a_step_costs_what_the_batch_costs(name: str):
    """Two tables, one a hundred times the other: the same memory but for the table."""

    def held(num_nodes: int) -> int:
        h = jax.ShapeDtypeStruct((num_nodes, 5), jnp.float32)
        lowered = jax.jit(lambda h, key: SHUFFLES[name](key, h, sampled(), jnp.asarray(MASK))[1][0]).lower(
            h, jax.random.key(0)
        )
        memory = lowered.compile().memory_analysis()
        return memory.temp_size_in_bytes + memory.output_size_in_bytes

    assert held(10**6) == held(10**4)


@pytest.mark.slow
def test_it_learns_communities_without_labels():
    data = power_law_communities(1000, 15_000, num_classes=4, num_features=16, mixing=Mixing(homophily=0.7))
    labels, everything = np.asarray(data.labels), (full_block(data.graph),) * 2
    encoder, valid = GraphSAGE(hidden=32, out=32), jax.device_put(np.ones(128, bool))
    model = DeepGraphInfomax(encoder)

    def loss(params, stats, batch, key):
        draw, hide, seed = jax.random.split(key, 3)
        seeds = jax.random.randint(seed, (128,), 0, 1000)
        blocks = sample_blocks(draw, data.graph, seeds, (4, 4))
        losses = dgi(*model.apply(params, data.features, blocks, mask=valid, rngs={"corrupt": hide}), valid)
        return losses.mean(), ({"loss": losses.mean()}, stats)

    def score(rows):
        rows = np.asarray(rows)
        rows = (rows - rows.mean(0)) / rows.std(0)
        return LogisticRegression(max_iter=300).fit(rows[:200], labels[:200]).score(rows[200:], labels[200:])

    @jax.jit
    def embed(params, features, blocks):
        own = {"params": params["params"]["encoder"]}
        return encoder.apply(own, features, blocks)

    draw_first = jax.jit(lambda graph: sample_blocks(jax.random.key(0), graph, jnp.arange(128), (4, 4)))
    blocks = draw_first(data.graph)
    keys = {"params": jax.random.key(1), "corrupt": jax.random.key(2)}
    params = jax.jit(model.init)(keys, data.features, blocks)
    optimizer = optax.adam(0.01)
    update = make_update(loss, optimizer)
    state = jax.jit(lambda params: init_state(jax.random.key(3), params, optimizer))(params)
    state, sums = jax.jit(lambda state: jax.lax.scan(update, state, None, length=150))(state)
    assert np.asarray(sums["loss"])[-20:].mean() < 0.45 < np.log(2)
    untrained, trained = (score(embed(each, data.features, everything)) for each in (params, state.params))
    assert trained > max(untrained, score(data.features)) + 0.05
