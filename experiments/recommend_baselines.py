"""What recommends without learning by gradients: popularity, and the singular vectors of the interactions."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jsage.blocks import Block
from jsage.graph import Graph, edges, in_degrees
from jsage.sampling import full_block

RANKS = (2, 4, 8, 16, 32, 64, 128)


class Factors(NamedTuple):
    """A user's score of an item is the product of their rows."""

    users: Array
    items: Array


def popularity(graph: Graph, num_users: int) -> Factors:
    """How many training users an item has, the same for all."""
    count = in_degrees(graph)[num_users:].astype(jnp.float32)
    return Factors(jnp.ones((num_users, 1)), count[:, None])


def svd_factors(graph: Graph, num_users: int, ranks: tuple[int, ...] = RANKS) -> dict[str, Factors]:
    """Truncated singular value decompositions of the interactions, to be chosen from by validation.

    Of the 0-1 matrix (Cremonesi et al., 2010, PureSVD), of `D_u^-1/2 A D_i^-1/2`, and of that with its
    scores times `D_i^1/2` again (Shen et al., 2021, the ideal low-pass filter of GF-CF). Rows of a lower
    rank are padded with 0, so that all have one shape.
    """
    src, dst = (np.asarray(ends) for ends in edges(graph))
    degree = np.maximum(np.asarray(in_degrees(graph)), 1).astype(np.float32)
    weights = {"plain": np.ones(len(src), np.float32), "normalised": (degree[src] * degree[dst]) ** -0.5}
    top = min(max(ranks), num_users, graph.num_nodes - num_users)
    popular = jnp.asarray(degree[num_users:, None] ** 0.5)
    found = {}
    for name, weight in weights.items():
        block = full_block(graph._replace(edge_data={"weight": jnp.asarray(weight)}))
        left, values, right = singular(jax.random.key(0), block, num_users, top)
        for rank in sorted({min(rank, top) for rank in ranks}):
            users = left * jnp.where(jnp.arange(top) < rank, values, 0.0)[None]
            found[f"{name}, rank {rank}"] = Factors(users, right)
            if name == "normalised":
                found[f"{name} and back, rank {rank}"] = Factors(users, right * popular)
    return found


@partial(jax.jit, static_argnums=(2, 3))
def singular(key: Array, block: Block, num_users: int, rank: int) -> tuple[Array, Array, Array]:
    """`(U, s, V)` of the largest `rank` singular values of a bipartite block's matrix of users by items.

    Subspace iteration on eight more vectors (Halko et al., 2011, algorithm 4.4): nothing of the size of
    users times items is held.
    """
    num_items = block.num_dst - num_users
    width = min(rank + 8, num_users, num_items)

    def to_users(rows):
        return block.sum(jnp.concatenate([jnp.zeros((num_users, width)), rows]))[:num_users]

    def to_items(rows):
        return block.sum(jnp.concatenate([rows, jnp.zeros((num_items, width))]))[num_users:]

    def again(_, right):
        return jnp.linalg.qr(to_items(jnp.linalg.qr(to_users(right))[0]))[0]

    right = jax.lax.fori_loop(0, 8, again, jax.random.normal(key, (num_items, width)))
    left = jnp.linalg.qr(to_users(right))[0]
    right, values, turn = jnp.linalg.svd(to_items(left), full_matrices=False)
    return (left @ turn.T)[:, :rank], values[:rank], right[:, :rank]
