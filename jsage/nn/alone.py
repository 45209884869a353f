"""A submodule as a function of arrays, for messages and for steps of reductions, which flax must not see."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from jsage.blocks.edges import edge_rows, edge_width
from jsage.blocks.layout import Block
from jsage.typing import EdgeData


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


def alone_on_edges(dense: nn.Module, block: Block, name: str) -> Callable[[EdgeData], Array]:
    """A dense layer on an array of `edge_data`, as a function of the edges' rows that a message gets.

    >>> import jax
    >>> from jsage.blocks import SUM, Tree
    >>> class Total(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, h, block):
    ...         made = alone_on_edges(nn.Dense(2), block, "age")
    ...         return block.reduce(lambda dst, src, edge: made(edge), SUM, None, h)
    >>> block = Tree(jnp.array([[True, True]]), {"age": jnp.array([[3.0, 5.0]])})
    >>> Total().init_with_output(jax.random.key(0), jnp.ones((3, 1)), block)[0].shape
    (1, 2)
    """
    width = edge_width(block, name) if dense.is_initializing() else 0
    made = alone(dense, jnp.zeros((1, width)))
    return lambda edge: made(edge_rows(edge, name))
