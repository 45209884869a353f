"""Users and items in one graph, and the items that share users; made on the host, in NumPy.

Users come first, items behind them: item `i` is node `num_users + i`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jsage._internal.arrays import run_positions
from jsage._internal.checks import INT32, check_edge_rows, check_ids, check_pairs
from jsage.graph.graph import Graph, SortedGraph, from_edges
from jsage.typing import HostArray


def bipartite_graph(
    users: HostArray | Sequence[int],
    items: HostArray | Sequence[int],
    num_users: int,
    num_items: int,
    *,
    edge_data: Mapping[str, HostArray | Sequence[int] | Sequence[float]] | None = None,
) -> Graph:
    """The graph of the interactions `(users[e], items[e])`, each an edge in both directions.

    `users` in `0 .. num_users - 1`, `items` in `0 .. num_items - 1`; `edge_data` has one row an interaction,
    and both of its edges get it. Repeated interactions stay parallel edges. Raises ValueError for ragged
    arrays, ids that are no integers or out of range, and data that `from_edges` refuses.

    >>> graph = bipartite_graph([0, 0, 1], [0, 2, 2], num_users=2, num_items=3)
    >>> graph.indptr.tolist(), graph.indices.tolist()  # users 0 and 1, items 0, 1, 2
    ([0, 2, 3, 4, 4, 6], [2, 4, 4, 0, 0, 1])
    """
    users = check_ids(users, num_users, "users", what="users")
    items = check_ids(items, num_items, "items", what="items").astype(np.int64) + num_users
    check_pairs(users, items, ("users", "items"), "an interaction")
    data = {
        name: check_edge_rows(name, values, len(users), what="an interaction")
        for name, values in (edge_data or {}).items()
    }
    src, dst = np.concatenate([items, users]), np.concatenate([users, items])
    both = {name: np.concatenate([values, values]) for name, values in data.items()}
    return from_edges(src, dst, num_users + num_items, **both)


def item_nodes(items: Int[HostArray, "*shape"], num_users: int) -> Int[HostArray, "*shape"]:
    """The nodes of items: `num_users + items`. Also works inside jit.

    >>> item_nodes(jnp.array([0, 2]), num_users=10)
    Array([10, 12], dtype=int32)
    """
    return items + num_users


def node_items(nodes: Int[HostArray, "*shape"], num_users: int) -> Int[HostArray, "*shape"]:
    """The items of nodes that are items: `nodes - num_users`, negative for a user. Also works inside jit.

    >>> node_items(jnp.array([10, 12]), num_users=10)
    Array([0, 2], dtype=int32)
    """
    return nodes - num_users


class _Rows(NamedTuple):
    """One list a row: `ids[indptr[r] : indptr[r + 1]]`."""

    indptr: np.ndarray
    ids: np.ndarray


def item_item(
    graph: Graph, num_users: int, *, least: int = 1, top: int | None = None, pairs: int = 2**24
) -> Graph:
    """The items joined to those that they share users with, `weight` the number of users in common.

    That is `A^T A` without its diagonal, for the 0-1 matrix `A` of users by items of a `bipartite_graph`.
    Node `i` is item `i`; the sources of a row ascend. Pairs with fewer than `least` common users are left
    out; `top` keeps the items of each row with the most (ties: the lower item), and the graph is no longer
    symmetric.

    The memory is that of the interactions and the result, for `pairs` pairs of interactions at a time, and
    one count an item. Raises ValueError where an edge does not join a user and an item.

    >>> graph = bipartite_graph([0, 0, 1, 1, 2], [0, 1, 0, 1, 2], num_users=3, num_items=3)
    >>> common = item_item(graph, 3)
    >>> common.indptr.tolist(), common.indices.tolist(), common.edge_data["weight"].tolist()
    ([0, 1, 2, 2], [1, 0], [2.0, 2.0])
    """
    for name, value in (("least", least), ("top", 1 if top is None else top), ("pairs", pairs)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    readers, read = _incidence(graph, num_users)
    num_items = len(readers.indptr) - 1
    found = [_best(*part, least, top) for part in _common(readers, read, pairs) if len(part[0])] or [
        (np.zeros(0, np.int64),) * 3
    ]
    row, item, count = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    if len(row) >= INT32:
        raise ValueError(
            f"the items share {len(row)} pairs, but a graph holds fewer than 2^31: raise least, or pass top"
        )
    indptr = _running(np.bincount(row, minlength=num_items)).astype(np.int32)
    weight = {"weight": jnp.asarray(count.astype(np.float32))}
    return SortedGraph(jnp.asarray(indptr), jnp.asarray(item.astype(np.int32)), weight)


def _incidence(graph: Graph, num_users: int) -> tuple[_Rows, _Rows]:
    """The distinct users of each item, and the distinct items of each user."""
    n, indptr, indices = graph.num_nodes, np.asarray(graph.indptr), np.asarray(graph.indices)
    if not 0 <= num_users <= n:
        raise ValueError(f"num_users must be in 0 .. {n}, the number of nodes, got {num_users}")
    cut = indptr[num_users]
    if (indices[:cut] < num_users).any() or (indices[cut:] >= num_users).any():
        raise ValueError(
            f"every edge must join a user (below {num_users}) and an item, but some do not: "
            "check num_users, or make the graph by bipartite_graph"
        )
    num_items = n - num_users
    item = np.repeat(np.arange(num_items), np.diff(indptr[num_users:]))
    pair = np.sort(item * max(num_users, 1) + indices[cut:])
    pair = pair[np.diff(pair, prepend=-1) > 0]
    item, user = np.divmod(pair, max(num_users, 1))
    order = np.argsort(user, kind="stable")
    return _rows(item, user, num_items), _rows(user[order], item[order], num_users)


def _common(readers: _Rows, read: _Rows, pairs: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """`(row, item, count)` of the pairs of items that share users, part by part."""
    width = np.diff(read.indptr)
    work = _running(width[readers.ids])[readers.indptr]  # pairs of interactions before each item
    num_items, first = len(readers.indptr) - 1, 0
    while first < num_items:
        last = int(np.searchsorted(work, work[first] + pairs, side="right")) - 1
        if last > first:
            yield _many(readers, read, first, last)
        else:
            last = first + 1
            yield _one(readers, read, first, pairs)
        first = last


def _many(readers: _Rows, read: _Rows, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of the items `first .. last - 1`, all at once."""
    num_items = len(readers.indptr) - 1
    users = readers.ids[readers.indptr[first] : readers.indptr[last]]
    row = np.repeat(np.arange(first, last), np.diff(readers.indptr[first : last + 1]))
    other, width = _expand(read, users)
    row = np.repeat(row, width)
    pair, count = np.unique((row * num_items + other)[row != other], return_counts=True)
    row, other = np.divmod(pair, num_items)
    return row, other, count


def _one(readers: _Rows, read: _Rows, item: int, pairs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of one item with many, some of its users at a time."""
    num_items = len(readers.indptr) - 1
    users = readers.ids[readers.indptr[item] : readers.indptr[item + 1]]
    total = _running(np.diff(read.indptr)[users])
    counts, first = np.zeros(num_items, np.int64), 0
    while first < len(users):
        last = max(int(np.searchsorted(total, total[first] + pairs, side="right")) - 1, first + 1)
        counts += np.bincount(_expand(read, users[first:last])[0], minlength=num_items)
        first = last
    counts[item] = 0
    other = np.flatnonzero(counts)
    return np.full(len(other), item), other, counts[other]


def _best(
    row: np.ndarray, item: np.ndarray, count: np.ndarray, least: int, top: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs with enough users in common, and the `top` of each row; in the order given."""
    keep = count >= least
    row, item, count = row[keep], item[keep], count[keep]
    if top is None:
        return row, item, count
    order = np.lexsort((item, -count, row))
    begin = np.flatnonzero(np.diff(row, prepend=-1))
    rank = np.arange(len(row)) - np.repeat(begin, np.diff(begin, append=len(row)))
    keep = np.sort(order[rank < top])
    return row[keep], item[keep], count[keep]


def _expand(rows: _Rows, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lists of some rows, one behind the other, and their lengths."""
    start, width = rows.indptr[which], np.diff(rows.indptr)[which]
    return rows.ids[run_positions(start, width)], width


def _rows(row: np.ndarray, ids: np.ndarray, num_rows: int) -> _Rows:
    return _Rows(_running(np.bincount(row, minlength=num_rows)), ids)


def _running(counts: np.ndarray) -> np.ndarray:
    """0, then the running sums."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
