"""The default activation: jax.nn.relu to the bit, forwards, backwards and in forward mode."""

import jax
import jax.numpy as jnp
import numpy as np

from jsage.nn.act import relu

X = jnp.array([-np.inf, -2.0, -1e-45, -0.0, 0.0, 1e-45, 3.0, np.inf, np.nan])


def test_values_and_gradients_are_those_of_relu():
    tangent = jnp.arange(1.0, 1 + X.size)
    for dtype in (jnp.float32, jnp.bfloat16):
        x, t = X.astype(dtype), tangent.astype(dtype)
        mine, theirs = (jax.jvp(f, (x,), (t,)) for f in (relu, jax.nn.relu))
        jax.tree.map(np.testing.assert_array_equal, mine, theirs)
        assert mine[0].dtype == mine[1].dtype == dtype
        grads = [jax.vjp(f, x)[1](t) for f in (relu, jax.nn.relu)]
        jax.tree.map(np.testing.assert_array_equal, *grads)


def test_the_gradient_reads_the_result_alone():
    kept = jax.eval_shape(lambda x: jax.vjp(relu, x)[1], X)
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {np.dtype(bool)}
