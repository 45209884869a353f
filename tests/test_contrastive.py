"""Closed forms in float64, gradients, NaN in what is invalid, extreme scores."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from jax.test_util import check_grads
from scipy.special import expit, logsumexp

from jsage.losses import bpr, dgi, info_nce, link_cross_entropy, margin, masked_mean, skip_gram

pytestmark = pytest.mark.usefixtures("strict_dtypes")

B, NEGATIVES = 7, 4
RNG = np.random.default_rng(0)
POSITIVE = RNG.normal(size=B, scale=3).astype(np.float32)
NEGATIVE = RNG.normal(size=(B, NEGATIVES), scale=3).astype(np.float32)
SQUARE = RNG.normal(size=(B, B), scale=3).astype(np.float32)
MASK = np.array([1, 1, 1, 1, 1, 0, 0], bool)
VALID = RNG.random((B, NEGATIVES)) < 0.6
VALID[2] = False  # a row without negatives
ALLOWED = RNG.random((B, B)) < 0.6
ALLOWED[1] = False


def mean(values) -> float:
    return float(np.mean(values)) if len(values) else 0.0


REFERENCES = {
    "skip_gram": (
        skip_gram,
        lambda p, n: -np.log(expit(p)) - 20 * mean(np.log(expit(-n))),
    ),
    "skip_gram, Q = 3": (
        partial(skip_gram, Q=3.0),
        lambda p, n: -np.log(expit(p)) - 3 * mean(np.log(expit(-n))),
    ),
    "margin": (margin, lambda p, n: mean(np.maximum(0, n - p + 1))),
    "margin, delta = 0.3": (
        partial(margin, delta=0.3),
        lambda p, n: mean(np.maximum(0, n - p + 0.3)),
    ),
    "bpr": (bpr, lambda p, n: mean(-np.log(expit(p - n)))),
    "link_cross_entropy": (
        link_cross_entropy,
        lambda p, n: mean([-np.log(expit(p)), *-np.log(1 - expit(n))]),
    ),
}
"""name -> (loss, (positive, valid negatives) -> the row's loss in float64)"""

losses = pytest.mark.parametrize("name", REFERENCES)


def on_device(*arrays):
    return [jnp.asarray(array) for array in arrays]


@losses
def test_a_row_is_the_closed_form(name: str):
    loss, reference = REFERENCES[name]
    expected = [
        reference(p, n[valid]) for p, n, valid in zip(POSITIVE.astype(float), NEGATIVE, VALID, strict=True)
    ]
    rows = loss(*on_device(POSITIVE, NEGATIVE, MASK, VALID))
    np.testing.assert_allclose(rows, np.where(MASK, expected, 0), rtol=1e-5, atol=1e-6)
    assert rows.dtype == jnp.float32
    whole = loss(*on_device(POSITIVE, NEGATIVE, np.ones(B, bool)))
    expected = [reference(p, n) for p, n in zip(POSITIVE.astype(float), NEGATIVE, strict=True)]
    np.testing.assert_allclose(whole, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@losses
def test_what_is_dead_costs_nothing_whatever_it_holds(name: str):
    loss = REFERENCES[name][0]
    valid = VALID & MASK[:, None]
    poison = np.array([np.nan, np.inf, -np.inf, np.nan], np.float32)
    dirty = np.where(MASK, POSITIVE, np.nan), np.where(valid, NEGATIVE, poison)

    def total(positive, negatives):
        rows = loss(positive, negatives, *on_device(MASK, VALID))
        return masked_mean(rows, jnp.asarray(MASK)), rows

    both = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
    (clean, rows), gradients = both(*on_device(POSITIVE, NEGATIVE))
    (same, _), dirty_gradients = both(*on_device(*dirty))
    assert clean == same
    assert rows[5:].tolist() == [0, 0]
    for gradient, other, alive in zip(gradients, dirty_gradients, (MASK, valid), strict=True):
        np.testing.assert_array_equal(gradient, other)
        assert not gradient[~alive].any()
    assert gradients[0].any()
    assert gradients[1].any()


@losses
def test_gradients_by_finite_differences(name: str):
    loss, arrays = REFERENCES[name][0], on_device(POSITIVE, NEGATIVE)
    check_grads(
        lambda p, n: loss(*on_device(p, n, MASK, VALID)).sum() / 10, arrays, 1, ["rev"], 2e-2, 2e-2, 1e-2
    )


@losses
@pytest.mark.parametrize("size", [1e4, 1e30])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_extreme_scores_stay_finite(name: str, size: float, dtype):
    positive = jnp.array([size, -size, size, 0], dtype)
    negatives = jnp.array([[-size, 0], [size, size], [size, -size], [0, -size]], dtype)
    rows, vjp = jax.vjp(lambda p, n: REFERENCES[name][0](p, n, jnp.ones(4, bool)), positive, negatives)
    assert rows.dtype == jnp.float32
    assert jnp.isfinite(rows).all()
    assert all(jnp.isfinite(gradient).all() for gradient in vjp(jnp.ones(4)))
    assert rows[1] >= 0.99 * size  # a wrong order costs in proportion


def test_links_are_scikit_learns_log_loss_over_all_links():
    rows = link_cross_entropy(*on_device(POSITIVE, NEGATIVE, np.ones(B, bool)))
    scores = np.concatenate([POSITIVE, NEGATIVE.ravel()]).astype(float)
    truth = np.arange(len(scores)) < B
    assert rows.mean() == pytest.approx(sklearn.metrics.log_loss(truth, expit(scores)), rel=1e-5)


def test_dgi_is_equation_1():
    rows = dgi(*on_device(POSITIVE, NEGATIVE[:, 0], MASK))
    valid = POSITIVE[MASK].astype(float), NEGATIVE[MASK, 0].astype(float)
    objective = (np.log(expit(valid[0])).sum() + np.log(1 - expit(valid[1])).sum()) / (2 * MASK.sum())
    assert masked_mean(rows, jnp.asarray(MASK)) == pytest.approx(-objective, rel=1e-5)


def test_the_three_losses_of_pairs_order_alike():
    """Each falls as the positive rises, and never falls as a negative rises."""
    for name, (loss, _) in REFERENCES.items():
        up, down = jax.grad(lambda p, n, f=loss: f(p, n, jnp.ones(B, bool)).sum(), argnums=(0, 1))(
            *on_device(POSITIVE, NEGATIVE)
        )
        assert (up <= 0).all(), name
        assert (down >= 0).all(), name
        assert up.any(), name
        assert down.any(), name


def info_nce_reference(scores, mask, allowed, temperature):
    """One row at a time in float64."""
    rows = []
    for i in range(len(scores)):
        others = [j for j in range(len(scores)) if j == i or (mask[j] and allowed[i, j])]
        logits = scores[i].astype(float) / temperature
        rows.append((logsumexp(logits[others]) - logits[i]) if mask[i] else 0.0)
    return np.array(rows)


@pytest.mark.parametrize("temperature", [1.0, 0.07])
def test_info_nce_is_the_closed_form(temperature: float):
    rows = info_nce(*on_device(SQUARE, MASK, ALLOWED), temperature=temperature)
    np.testing.assert_allclose(
        rows, info_nce_reference(SQUARE, MASK, ALLOWED, temperature), rtol=1e-4, atol=1e-5
    )
    assert rows[1] == 0  # nothing but its own positive
    everything = np.ones((B, B), bool)
    rows = info_nce(*on_device(SQUARE, MASK), temperature=temperature)
    np.testing.assert_allclose(
        rows, info_nce_reference(SQUARE, MASK, everything, temperature), rtol=1e-4, atol=1e-5
    )


def test_info_nce_of_dead_rows_and_columns():
    own = np.eye(B, dtype=bool)
    valid = MASK[:, None] & MASK[None] & (ALLOWED | own)

    def total(scores):
        rows = info_nce(scores, *on_device(MASK, ALLOWED), temperature=0.5)
        return masked_mean(rows, jnp.asarray(MASK))

    clean, gradient = jax.value_and_grad(total)(jnp.asarray(SQUARE))
    same, dirty_gradient = jax.value_and_grad(total)(jnp.asarray(np.where(valid, SQUARE, np.nan)))
    assert clean == same
    np.testing.assert_array_equal(gradient, dirty_gradient)
    assert not gradient[~valid].any()
    assert gradient[valid & ~own].any()
    check_grads(lambda s: total(jnp.asarray(s)), (jnp.asarray(SQUARE),), 1, ["rev"], 2e-2, 2e-2, 1e-2)


def test_info_nce_at_extremes_and_its_temperature():
    size = 1e30
    scores = jnp.array([[size, -size], [size, -size]], jnp.float32)
    rows, vjp = jax.vjp(lambda s: info_nce(s, jnp.ones(2, bool)), scores)
    assert rows.tolist() == [0, pytest.approx(2 * size)]
    assert jnp.isfinite(vjp(jnp.ones(2))[0]).all()
    slope = jax.grad(lambda t: info_nce(*on_device(SQUARE, MASK), temperature=t).sum())
    near = [info_nce_reference(SQUARE, MASK, np.ones((B, B), bool), t).sum() for t in (1.0, 1.001)]
    assert slope(jnp.array(1.0005)) == pytest.approx((near[1] - near[0]) / 0.001, rel=1e-3)
    with pytest.raises(ValueError, match=r"expected a positive temperature, got 0\.0"):
        info_nce(*on_device(SQUARE, MASK), temperature=0.0)


def test_an_empty_mask_gives_zero_and_no_gradient():
    nothing = jnp.zeros(B, bool)
    for loss in [loss for loss, _ in REFERENCES.values()]:
        rows, vjp = jax.vjp(
            lambda n, f=loss: f(jnp.full(B, jnp.nan), n, nothing), jnp.full_like(NEGATIVE, jnp.nan)
        )
        assert not rows.any()
        assert not vjp(jnp.ones(B))[0].any()
    rows, vjp = jax.vjp(lambda s: info_nce(s, nothing), jnp.full((B, B), jnp.nan))
    assert not rows.any()
    assert not vjp(jnp.ones(B))[0].any()
