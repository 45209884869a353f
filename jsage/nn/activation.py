"""The activation of hidden layers."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


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
    return _relu(x)  # a function is pickled by its name, a custom_jvp is not


@jax.custom_jvp
def _relu(x):
    return jax.lax.optimization_barrier(jnp.maximum(x, 0))


@_relu.defjvp
def _relu_jvp(primals, tangents):
    out = _relu(primals[0])
    return out, jnp.where(out > 0, tangents[0], 0)
