"""What recommends without learning by gradients: popularity, singular vectors, the items that share users."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import svds

from jsage.graph import Graph, edges, in_degrees, item_item

RANKS = (2, 4, 8, 16, 32, 64, 128)
NEAREST = (10, 50, 200)


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
    mine = src < num_users  # each pair is there in both directions
    user, item = src[mine], dst[mine] - num_users
    num_items = graph.num_nodes - num_users
    degree = np.maximum(np.asarray(in_degrees(graph)), 1).astype(float)
    weights = {
        "plain": np.ones(len(user)),
        "normalized": (degree[user] * degree[num_users + item]) ** -0.5,
    }
    top = min(max(ranks), num_users, num_items)
    popular = jnp.asarray(degree[num_users:, None] ** 0.5, jnp.float32)
    found = {}
    for name, weight in weights.items():
        left, values, right = singular(csr_matrix((weight, (user, item)), (num_users, num_items)), top)
        for rank in sorted({min(rank, top) for rank in ranks}):
            users = jnp.asarray(left * np.where(np.arange(top) < rank, values, 0.0))
            found[f"{name}, rank {rank}"] = Factors(users, jnp.asarray(right))
            if name == "normalized":
                found[f"{name} and back, rank {rank}"] = Factors(users, jnp.asarray(right) * popular)
    return found


def knn_factors(graph: Graph, num_users: int, nearest: tuple[int, ...] = NEAREST) -> dict[str, Factors]:
    """Cosines of items' users, summed over a user's items, to be chosen from by validation.

    Each of the user's items speaks for the so many that share most users with it (Deshpande & Karypis, 2004,
    section 4). A table of users by items and one of items by items: for few items.
    """
    num_items = graph.num_nodes - num_users
    src, dst = (np.asarray(ends) for ends in edges(graph))
    mine = dst < num_users
    users = np.zeros((num_users, num_items), np.float32)
    users[dst[mine], src[mine] - num_users] = 1
    length = np.maximum(np.asarray(in_degrees(graph))[num_users:], 1) ** 0.5
    found = {}
    for top in sorted({min(top, num_items) for top in nearest}):
        common = item_item(graph, num_users, top=top)
        near, item = (np.asarray(ends) for ends in edges(common))
        items = np.zeros((num_items, num_items), np.float32)
        items[near, item] = np.asarray(common.edge_data["weight"]) / (length[near] * length[item])
        found[f"nearest {top}"] = Factors(jnp.asarray(users), jnp.asarray(items))
    return found


def singular(matrix: csr_matrix, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`(U, s, V)` of the largest `rank` singular values, largest first; all of them from a dense matrix."""
    shape: Any = matrix.shape
    if rank < min(shape):
        start = np.random.default_rng(0).normal(size=min(shape))
        found: Any = svds(matrix, rank, v0=start)
        left, values, right = found
        return left[:, ::-1], values[::-1], right[::-1].T
    left, values, right = np.linalg.svd(matrix.toarray(), full_matrices=False)
    return left, values, right.T
