"""A key's kind depends on what jax has, its value on the seed alone."""

import jax
import numpy as np
import pytest
from helpers import KEY_KINDS

from jsage.sampling import fast_key, keys


@pytest.mark.parametrize("kind", KEY_KINDS)
def test_a_fast_key_is_of_the_fastest_kind_that_jax_has(kind, monkeypatch):
    monkeypatch.setattr(keys, "has_key_kind", lambda asked: asked in KEY_KINDS[: KEY_KINDS.index(kind) + 1])
    for seed in (0, 7, 2**31):
        assert fast_key(seed) == jax.random.key(seed, impl=kind)
    assert fast_key(1) != fast_key(2)


def test_a_seed_may_be_an_argument_of_a_jitted_function():
    made = jax.jit(fast_key)(np.uint32(5))
    assert made.dtype == fast_key(5).dtype
    np.testing.assert_array_equal(jax.random.key_data(made), jax.random.key_data(fast_key(5)))
