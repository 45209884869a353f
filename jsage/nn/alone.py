"""A submodule as a function of arrays, for messages and for steps of reductions, which flax must not see."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn


def alone(module: nn.Module, *inputs: Any) -> Callable[..., Any]:
    """A function that applies a submodule with its parameters; they are made from such inputs at first.

    >>> import jax, jax.numpy as jnp
    >>> class Twice(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, h):
    ...         return jax.lax.map(alone(nn.Dense(2), h[:1]), h[:, None])
    >>> Twice().init_with_output(jax.random.key(0), jnp.ones((3, 4)))[0].shape
    (3, 1, 2)
    """
    if module.is_initializing():
        module(*inputs)
    params, single = module.variables["params"], module.clone(parent=None, name=None)
    return lambda *given: single.apply({"params": params}, *given)
