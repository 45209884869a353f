"""jsage.nn.relu beside jax.nn.relu."""

import jax
import jax.numpy as jnp
import pytest
from numpy.testing import assert_array_equal

from jsage.nn import relu

X = jnp.array([[-2.0, -0.0, 0.0], [0.5, 3.0, jnp.inf]])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_and_gradients_in_both_modes_are_those_of_jax(dtype):
    x = X.astype(dtype)
    weight = jnp.arange(6, dtype=dtype).reshape(2, 3) + 1
    for transform in (lambda f: f(x), lambda f: jax.vmap(f)(x), lambda f: jax.jvp(f, (x,), (weight,))[1]):
        assert_array_equal(transform(relu), transform(jax.nn.relu))
        assert transform(relu).dtype == dtype
    grads = [jax.jit(jax.grad(lambda x, f=f: (f(x) * weight)[:, :2].sum()))(x) for f in (relu, jax.nn.relu)]
    assert_array_equal(*grads)


def test_nan_is_not_hidden():
    assert jnp.isnan(relu(jnp.array([jnp.nan])))[0]


def test_the_input_is_not_kept_for_the_gradient():
    def kept(f):
        return [leaf.tolist() for leaf in jax.tree.leaves(jax.vjp(f, X)[1])]

    assert X.tolist() not in kept(relu)
    assert X.tolist() in kept(lambda x: 0.5 * x * x)  # the check sees one that is
