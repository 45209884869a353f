"""The laws of the draws, over 100 000 of them: legal, distinct, uniform, independent, pure."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DRAWS, KEY_KINDS
from scipy import stats

from jsage.sampling import Recent, choose, latest, with_replacement, without_replacement

ROWS, K = 100_000, 3
HUBS = [2**24 + 3, 3 * 2**23, 2**30, 2**31 - 1]

KEY = jax.random.key(5)

RANDOM = [name for name in DRAWS if name != "latest"]

compiled = {name: jax.jit(draw, static_argnums=2) for name, draw in DRAWS.items()}


def draw(name: str, n, k: int = K, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`ROWS` rows of `n` entries each (or of `n[i]`)."""
    n = jnp.asarray(np.broadcast_to(np.asarray(n, np.int32), ROWS))
    offset, mask = compiled[name](jax.random.key(seed), n, k)
    return np.asarray(offset), np.asarray(mask)


def is_uniform(values: np.ndarray, cells: int) -> bool:
    return stats.chisquare(np.bincount(values, minlength=cells)).pvalue > 1e-3


def is_even(inclusions: np.ndarray, k: int) -> bool:
    """Whether each of `n` entries is in `k / n` of the subsets: counts that are correlated."""
    n, p = len(inclusions), k / len(inclusions)
    draws = inclusions.sum() / k
    chi2 = ((inclusions - draws * p) ** 2).sum() / (draws * p * (1 - p)) * (n - 1) / n
    return stats.chi2.sf(chi2, n - 1) > 1e-3


def subset_numbers(offset: np.ndarray, n: int) -> np.ndarray:
    """A number for each row's subset of `0 .. n-1`."""
    code = np.sort(offset, 1) @ n ** np.arange(offset.shape[1])
    return np.unique(code, return_inverse=True)[1]


@pytest.fixture(scope="module")
def degrees() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 9, ROWS)


@pytest.mark.parametrize("name", DRAWS)
def test_offsets_are_legal_and_valid_slots_first(name: str, degrees: np.ndarray):
    offset, mask = draw(name, degrees)
    assert offset.shape == mask.shape == (ROWS, K)
    assert offset.dtype == np.int32
    assert (offset >= 0).all()
    assert (offset < np.maximum(degrees, 1)[:, None]).all()
    assert (offset[~mask] == 0).all()
    assert (mask[:, 1:] <= mask[:, :-1]).all()
    valid = np.where(degrees > 0, K, 0) if name == "with_replacement" else np.minimum(degrees, K)
    np.testing.assert_array_equal(mask.sum(1), valid)


@pytest.mark.parametrize("name", ["without_replacement", "latest"])
def test_without_replacement_never_repeats(name: str, degrees: np.ndarray):
    offset, mask = draw(name, degrees)
    distinct = np.where(mask, offset, -1 - np.arange(K))  # padded slots apart from everything
    assert (np.diff(np.sort(distinct, 1), axis=1) > 0).all()


@pytest.mark.parametrize("n", [0, 1, K - 1, K])
def test_a_short_row_is_drawn_whole_and_in_order(n: int):
    offset, mask = draw("without_replacement", n)
    assert (offset[:, :n] == np.arange(n)).all()
    assert (mask == (np.arange(K) < n)).all()


def test_the_latest_are_the_last_whatever_the_key(degrees: np.ndarray):
    for seed in (0, 1):
        offset, mask = draw("latest", degrees, seed=seed)
        last = degrees[:, None] - 1 - np.arange(K)
        np.testing.assert_array_equal(mask, last >= 0)
        np.testing.assert_array_equal(offset, np.maximum(last, 0))
    offset, _ = draw("latest", 2**31 - 1)
    assert (offset == 2**31 - 2 - np.arange(K)).all()


@pytest.mark.parametrize("n", [K + 1, K + 2, 7, 9])
def test_every_subset_is_equally_likely(n: int):
    offset, mask = draw("without_replacement", n)
    assert mask.all()
    assert is_uniform(subset_numbers(offset, n), math.comb(n, K))


@pytest.mark.parametrize("n", [K + 1, 7, 50, 1000])
def test_every_entry_is_drawn_equally_often(n: int):
    offset, _ = draw("without_replacement", n, seed=1)
    assert is_even(np.bincount(offset.ravel(), minlength=n), K)


def test_subsets_are_uniform_over_keys():
    keys = jax.random.split(jax.random.key(5), ROWS)
    n = jnp.array([6], jnp.int32)
    offset, _ = jax.jit(jax.vmap(lambda key: without_replacement(key, n, K)))(keys)
    assert is_uniform(subset_numbers(np.asarray(offset[:, 0]), 6), math.comb(6, K))


@pytest.mark.parametrize("apart", [1, ROWS // 2])
def test_rows_are_independent(apart: int):
    subset = subset_numbers(draw("without_replacement", 5, seed=2)[0], 5)
    first = np.arange(ROWS).reshape(-1, 2 * apart)[:, :apart].ravel()
    assert is_uniform(subset[first] * 10 + subset[first + apart], 100)


def test_with_replacement_is_uniform_and_independent():
    offset, mask = draw("with_replacement", 6)
    assert mask.all()
    assert is_uniform(offset @ np.array([1, 6, 36]), 216)  # all slots of a row together
    pair = offset[0::2, 0] * 6 + offset[1::2, 0]
    assert is_uniform(pair, 36)


def test_a_draw_is_the_high_word_of_a_product():
    """To the last unit, for any word: `bits * n / 2^32`, rounded down."""
    rng = np.random.default_rng(0)
    bits, n = rng.integers(0, 2**32, ROWS, np.uint32), (2 ** rng.uniform(1, 31, ROWS)).astype(np.int32)
    offset, _ = jax.jit(choose)(bits[None], n)
    np.testing.assert_array_equal(offset[:, 0], (bits.astype(np.uint64) * n.astype(np.uint64)) >> 32)


@pytest.mark.parametrize("n", HUBS)
@pytest.mark.parametrize("name", RANDOM)
def test_hubs_beyond_what_floats_can_count(name: str, n: int):
    offset, mask = draw(name, n)
    offset = offset.astype(np.int64)
    assert mask.all()
    assert (offset >= 0).all()
    assert (offset < n).all()
    for column in offset.T:
        assert is_uniform(column * 64 // n, 64)  # everywhere in the row ...
        assert is_uniform(column % 64, 64)  # ... and down to the last bit
    if name == "without_replacement":
        assert (np.diff(np.sort(offset, 1), axis=1) > 0).all()


def test_the_last_entries_of_a_hub_are_reached():
    """Floyd's slot `i` takes entry `n - k + i` itself where it collides: right to the last of them."""
    n = np.where(np.arange(ROWS) % 2, K + 1, 2**30)
    offset, _ = draw("without_replacement", n)
    assert set(offset[1::2].ravel()) == set(range(K + 1))
    assert offset[0::2].max() > 2**30 * 0.9999


@pytest.mark.slow
@pytest.mark.parametrize("impl", KEY_KINDS)
@pytest.mark.parametrize("name", DRAWS)
def test_vmap_and_scan_equal_a_loop(name: str, impl: str):
    keys = jax.random.split(jax.random.key(3, impl=impl), 4)
    n = jnp.array([0, 2, 3, 10, 2**30], jnp.int32)
    loop = [compiled[name](key, n, K) for key in keys]
    loop = jax.tree.map(lambda *rows: jnp.stack(rows), *loop)

    def draw(key):
        return DRAWS[name](key, n, K)

    @jax.jit
    def together(keys):
        return jax.vmap(draw)(keys), jax.lax.scan(lambda carry, key: (carry, draw(key)), None, keys)[1]

    mapped, scanned = together(keys)
    for got in (mapped, scanned):
        for a, b in zip(got, loop, strict=True):
            np.testing.assert_array_equal(a, b)
    assert np.array_equal(loop[0][0], loop[0][1]) == (name == "latest")  # other keys draw others


@pytest.mark.parametrize("name", DRAWS)
def test_jit_changes_nothing(name: str):
    n = jnp.array([0, 2, 3, 10, 2**30], jnp.int32)
    eager, jitted = DRAWS[name](jax.random.key(0), n, K), compiled[name](jax.random.key(0), n, K)
    for a, b in zip(eager, jitted, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", DRAWS)
def test_no_implicit_promotion(name: str, strict_dtypes):
    offset, mask = jax.eval_shape(lambda key: DRAWS[name](key, jnp.array([0, 5]), 2), jax.random.key(0))
    assert offset.dtype == jnp.int32
    assert mask.dtype == jnp.bool_


@pytest.mark.parametrize("k", [0, -1])
@pytest.mark.parametrize("draw", [without_replacement, with_replacement, latest])
def test_a_fanout_must_be_positive(draw, k: int):
    with pytest.raises(ValueError, match=f"positive number of neighbors, got {k}: leave the hop out"):
        draw(jax.random.key(0), jnp.array([1, 2], jnp.int32), k)


@pytest.mark.parametrize(("decay", "n"), [(0.5, 1), (0.5, 4), (0.9, 7), (0.01, 3), (0.999, 30)])
def test_recent_draws_fall_by_the_decay_from_the_last_to_the_first(decay: float, n: int):
    rows = jnp.asarray(np.full(ROWS, n, np.int32))
    offset, mask = jax.tree.map(np.asarray, jax.jit(lambda key, n: Recent(decay)(key, n, K))(KEY, rows))
    assert mask.all()
    share = decay ** np.arange(n)[::-1]
    share = share / share.sum()
    for slot in offset.T:
        count = np.bincount(slot, minlength=n)
        assert n == 1 or stats.chisquare(count, ROWS * share).pvalue > 1e-3
    pairs = np.bincount(offset[:, 0] * n + offset[:, 1], minlength=n * n)  # slots are independent
    assert n == 1 or stats.chisquare(pairs, ROWS * np.outer(share, share).ravel()).pvalue > 1e-3


def test_recent_draws_of_no_edge_of_hubs_and_without_decay():
    n = jnp.asarray(np.array([0, 1, 2**31 - 1], np.int32))
    for decay in (0.5, 1 - 1e-9):
        offset, mask = jax.tree.map(np.asarray, Recent(decay)(KEY, n, 64))
        np.testing.assert_array_equal(mask.sum(1), [0, 64, 64])
        assert not offset[:2].any()
        assert (offset >= 0).all()
        assert (offset <= 2**31 - 2).all()
        assert (offset[2].min() > 2**31 - 60) == (decay == 0.5)
    for decay in (0.0, 1.0):
        with pytest.raises(ValueError, match="a decay is between 0 and 1, got"):
            Recent(decay)(KEY, n, 1)
