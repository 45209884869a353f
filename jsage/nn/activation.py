"""The activation of hidden layers."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_jvp
def relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`max(x, 0)`, written to memory once and alone kept for the gradient, which is 0 at 0.

    `jax.nn.relu` has the same values and gradients, but compilers then keep its input for the gradient and
    make its output again for each reader: in many a training step that is one array of hidden rows more. The
    barrier is for TPU and GPU; the CPU's compiler drops it.

    >>> import jax, jax.numpy as jnp
    >>> relu(jnp.array([-1.0, 0.0, 2.0]))
    Array([0., 0., 2.], dtype=float32)
    >>> jax.grad(lambda x: relu(x).sum())(jnp.array([-1.0, 0.0, 2.0]))
    Array([0., 0., 1.], dtype=float32)
    """
    return jax.lax.optimization_barrier(jnp.maximum(x, 0))


@relu.defjvp
def _relu_jvp(primals, tangents):
    out = relu(primals[0])
    return out, jnp.where(out > 0, tangents[0], 0)
