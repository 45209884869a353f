"""User-item data: where it comes from, and what each user's items are held out for."""

from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.recommend.taste import Interactions, taste
from jsage.data import EdgeSplit, load_npz, verify_split
from jsage.graph import Graph, bipartite_graph, edges, sort_rows

LEAST = 5
"""Items that a user needs for some to be held out."""


class Items(NamedTuple):
    """Items of each user: `indices[indptr[u]:indptr[u + 1]]`, ascending."""

    indptr: Array
    indices: Array


class Batch(NamedTuple):
    """What a step learns from."""

    users: Array
    mask: Array
    epoch: Array
    """The epoch's number, from 1."""


class Held(NamedTuple):
    """Interactions to be found again, and what `rate` needs to rank them."""

    user: Array
    item: Array
    row: Array
    """The number of the pair's user, among those that have one."""
    column: Array
    """The number of the pair, among its user's."""
    relevant: Array
    """`[rows, columns]`, True where there is a pair."""
    known: Items
    """What does not compete: items that the user is known to have."""


def load(dataset: str, relation: str | None) -> Interactions:
    """`taste`, or one relation of an `.npz` file: heads are the users, tails the items.

    An entity that is head and tail is a user and an item, two nodes. Triples that come again count once.
    """
    if dataset == "taste":
        if relation is not None:
            raise ValueError("--relation names a relation of an .npz file, and taste has none")
        return taste()
    if not Path(dataset).is_file():
        raise FileNotFoundError(f"{dataset}: expected taste, or an .npz file, and there is no such file")
    graph = load_npz(dataset).graph
    heads, tails = (np.asarray(ends).astype(np.int64) for ends in edges(graph))
    kind = np.asarray(graph.edge_data.get("type", np.zeros(len(heads), int)))
    keep = kind == choose_relation(heads, tails, kind, relation)
    users, user = np.unique(heads[keep], return_inverse=True)
    items, item = np.unique(tails[keep], return_inverse=True)
    user, item = np.divmod(np.unique(user * len(items) + item), len(items))
    return Interactions(user, item, len(users), len(items))


def choose_relation(heads: np.ndarray, tails: np.ndarray, kind: np.ndarray, relation: str | None) -> int:
    """The one named; or that with the most triples among those whose heads are never its tails.

    Raises ValueError for a relation that is not there, and where heads are tails in all.
    """
    if relation is not None:
        if not relation.isdecimal() or int(relation) not in kind:
            raise ValueError(f"--relation must be one of {kind.min()} .. {kind.max()}, got {relation!r}")
        return int(relation)
    kinds, count = np.unique(kind, return_counts=True)
    for one in kinds[np.argsort(-count, kind="stable")]:
        if not np.isin(heads[kind == one], tails[kind == one]).any():
            return int(one)
    raise ValueError("in every relation some heads are tails too: name one by --relation")


def split_items(data: Interactions, seed: int, *, val: float = 0.1, test: float = 0.2) -> EdgeSplit:
    """Some of each user's items at random: `max(1, round(share · d))` of its `d`; all else trains.

    Users with fewer than `LEAST` items train alone. Pairs are `(user, num_users + item)`, and there are no
    negatives: evaluation ranks all items. Raises ValueError where no user has enough.
    """
    order = np.random.default_rng(seed).permutation(len(data.users))
    order = order[np.argsort(data.users[order], kind="stable")]
    user, degree = data.users[order], np.bincount(data.users, minlength=data.num_users)
    if degree.max(initial=0) < LEAST:
        raise ValueError(f"no user has {LEAST} items, so none can be held out")
    place = np.arange(len(user)) - (np.cumsum(degree) - degree)[user]
    held = [np.maximum(1, np.rint(share * degree)) * (degree >= LEAST) for share in (test, val)]
    part = (place >= held[0][user]) * 1 + (place >= (held[0] + held[1])[user])
    pairs = np.stack([user, data.num_users + data.items[order]], 1).astype(np.int32)
    train, later, last = (pairs[part == number] for number in (2, 1, 0))
    none = np.zeros((0, 2), np.int32)
    split = EdgeSplit(as_graph(train, data), train, later, last, none, none)
    verify_split(split, as_graph(pairs, data))
    return split


def as_graph(pairs: np.ndarray, data: Interactions) -> Graph:
    """The bipartite graph of pairs of nodes, with sorted rows."""
    items = pairs[:, 1] - data.num_users
    return sort_rows(bipartite_graph(pairs[:, 0], items, data.num_users, data.num_items))


def hold(pairs: np.ndarray, known: Graph, num_users: int) -> Held:
    """Pairs to be found among all items but those that the graph `known` has for their users."""
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    _, row, count = np.unique(pairs[:, 0], return_inverse=True, return_counts=True)
    column = np.arange(len(pairs)) - (np.cumsum(count) - count)[row]
    relevant = np.arange(count.max()) < count[:, None]
    ends = known.indptr[: num_users + 1]
    items = Items(ends, known.indices[: int(ends[-1])] - num_users)
    user, item = jnp.asarray(pairs[:, 0]), jnp.asarray(pairs[:, 1] - num_users)
    places = jnp.asarray(row, jnp.int32), jnp.asarray(column, jnp.int32)
    return Held(user, item, *places, jnp.asarray(relevant), items)
