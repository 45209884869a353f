"""Pairs to tell links from: which could have been joined, and are not.

All on the host, exact and without rejection: the `r`-th number that is not in an ascending list `t` is
`r + j` with `j` the entries of `t[j] - j <= r`.
"""

import numpy as np
from jaxtyping import Int

from jsage.data.split_check import distinct, is_among, ordered_numbers, pair_ends, pair_numbers
from jsage.graph import Graph, edges, node_sides
from jsage.typing import HostArray


def destination_negatives(
    graph: Graph,
    pairs: Int[HostArray, "n 2"],
    *,
    seed: int,
    time: HostArray | None = None,
    among: HostArray | None = None,
    sides: HostArray | None = None,
) -> Int[np.ndarray, "n 2"]:
    """For each pair `(u, v)` one `(u, w)`: the source kept, the other end drawn evenly from what it could be.

    That are the nodes of `among` (ids; None: all; those that occur as destinations make it harder) on the
    side of `v` (`sides`: by default `jsage.graph.node_sides(graph)`), but for `u` itself and those that `u`
    has an edge to. With the pairs' `time`, only its edges of that very time count: that two nodes were in
    touch before is no link now. int32; the same seed gives the same under one version of NumPy. Raises
    ValueError where a source has no such node left.

    >>> from jsage.graph import bipartite_graph
    >>> graph = bipartite_graph([0, 1], [0, 1], num_users=2, num_items=2)  # items are the nodes 2 and 3
    >>> destination_negatives(graph, np.array([[0, 2], [1, 3]]), seed=0).tolist()
    [[0, 3], [1, 2]]
    """
    pairs, sides, rng = np.asarray(pairs), node_sides(graph, sides), np.random.default_rng(seed)
    asked, known, joined = _askers(graph, pairs, time)
    listed = np.full(graph.num_nodes, among is None)
    listed[[] if among is None else np.asarray(among)] = True
    found = np.empty(len(pairs), np.int64)
    for side in distinct(sides[pairs[:, 1]]):
        at, nodes = np.flatnonzero(sides[pairs[:, 1]] == side), np.flatnonzero(listed & (sides == side))
        inside = listed[joined] & (sides[joined] == side)
        taken = distinct(known[inside] * len(nodes) + np.searchsorted(nodes, joined[inside]))
        found[at] = nodes[_others(rng, asked[at], taken, len(nodes))]
    return np.stack([pairs[:, 0], found], 1).astype(np.int32)


def historical_negatives(
    before: Int[HostArray, "m 2"], pairs: Int[HostArray, "n 2"], *, seed: int
) -> Int[np.ndarray, "n 2"]:
    """As many pairs as `pairs`, drawn evenly among the distinct ones of `before` that are not in `pairs`.

    `pairs` are the events of a window, `before` those earlier than it: what was joined once and is not now
    (Poursafaei et al., 2022, "Towards better evaluation for dynamic link prediction", section 4.1). A pair
    may come again. int32. Raises ValueError where no pair is left.

    >>> historical_negatives(np.array([[0, 1], [0, 1], [2, 1]]), np.array([[2, 1], [2, 3]]), seed=0).tolist()
    [[0, 1], [0, 1]]
    """
    return _among_others(
        before, [pairs], len(pairs), seed, "was joined before and is not joined in this window"
    )


def inductive_negatives(
    train: Int[HostArray, "m 2"], others: Int[HostArray, "k 2"], pairs: Int[HostArray, "n 2"], *, seed: int
) -> Int[np.ndarray, "n 2"]:
    """As many pairs as `pairs`, drawn evenly among the distinct ones of `others` not in `train` or `pairs`.

    `pairs` are the events of a window, `train` those trained on, `others` those evaluated: pairs that a model
    which remembers training has never seen (Poursafaei et al., 2022, section 4.1). With all of the test as
    `others`, later ones count too, as in the paper; DyGLib takes those before the window. A pair may come
    again. int32. Raises ValueError where no pair is left.

    >>> train, test = np.array([[0, 1], [2, 1]]), np.array([[0, 1], [0, 3], [2, 3]])
    >>> inductive_negatives(train, test, test[2:], seed=0).tolist()
    [[0, 3]]
    """
    what = "is joined outside training and is not joined in this window"
    return _among_others(others, [train, pairs], len(pairs), seed, what)


def non_edges(
    rng: np.random.Generator,
    known: Int[np.ndarray, " m"],
    sides: Int[np.ndarray, " num_nodes"],
    like: Int[np.ndarray, " n"],
) -> Int[np.ndarray, " n"]:
    """Numbers of distinct pairs, one with the two sides of each of `like`, uniform over those not `known`.

    Pairs are numbered by `pair_numbers`, and `known` ascends. Raises ValueError where too few are left.

    >>> rng, sides = np.random.default_rng(0), np.array([0, 0, 1, 1])
    >>> known = pair_numbers(np.array([0, 1]), np.array([2, 3]))
    >>> [ends.tolist() for ends in pair_ends(np.sort(non_edges(rng, known, sides, known)))]
    [[1, 0], [2, 3]]
    """
    num_sides, size = int(sides.max(initial=0)) + 1, np.bincount(sides)
    members = np.argsort(sides, kind="stable")
    start = np.cumsum(size) - size
    place = np.empty(len(sides), np.int64)
    place[members] = np.arange(len(sides)) - np.repeat(start, size)
    wanted, taken = (_two_sides(sides, numbers, num_sides) for numbers in (like, known))
    found = np.empty(len(like), np.int64)
    for code in distinct(wanted[0]):
        a, b = divmod(int(code), num_sides)
        size_a, size_b = size[[a, b]].tolist()
        at, ends = np.flatnonzero(wanted[0] == code), place[taken[1][:, taken[0] == code]]
        if a == b:
            diagonal = np.arange(size_a)
            full = np.sort(np.concatenate([pair_numbers(*ends), pair_numbers(diagonal, diagonal)]))
            rank = _ranks(rng, full, size_a * (size_a + 1) // 2, len(at))
            one, other = pair_ends(rank)
        else:
            full = np.sort(ends[0] * size_b + ends[1])
            one, other = divmod(_ranks(rng, full, size_a * size_b, len(at)), size_b)
        found[at] = pair_numbers(members[start[a] + one], members[start[b] + other])
    return found


def _two_sides(sides: np.ndarray, numbers: np.ndarray, num_sides: int) -> tuple[np.ndarray, np.ndarray]:
    """A code of the two sides of each pair; and its ends, the one on the lower side first."""
    ends = np.stack(pair_ends(numbers))
    low, high = np.take_along_axis(ends, np.argsort(sides[ends], axis=0, kind="stable"), 0)
    return sides[low].astype(np.int64) * num_sides + sides[high], np.stack([low, high])


def _ranks(rng: np.random.Generator, taken: np.ndarray, total: int, size: int) -> np.ndarray:
    """`size` distinct numbers below `total`, uniform over those not in `taken`, which ascends."""
    left = total - len(taken)
    if size > left:
        raise ValueError(
            f"val and test need {size} pairs that are no edges, but the graph has only {left}: lower them"
        )
    rank = rng.choice(left, size, replace=False)
    return rank + np.searchsorted(taken - np.arange(len(taken)), rank, side="right")


def _among_others(
    pool: HostArray, without: list[HostArray], size: int, seed: int, what: str
) -> Int[np.ndarray, "n 2"]:
    """`size` pairs drawn evenly among the distinct ones of a pool that are in none of some lists."""
    left = distinct(ordered_numbers(np.asarray(pool)))
    for part in without:
        left = left[~is_among(left, np.sort(ordered_numbers(np.asarray(part))))]
    if not len(left):
        raise ValueError(f"no pair {what}: draw negatives in another way")
    rows = np.random.default_rng(seed).choice(left, size)
    return np.stack([rows >> 32, rows & 2**32 - 1], 1).astype(np.int32)


def _askers(
    graph: Graph, pairs: np.ndarray, time: HostArray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A number for the source (and time) of each pair; such numbers, and the nodes joined to them."""
    src, dst = (np.asarray(ends) for ends in edges(graph))
    joined, code = np.concatenate([pairs[:, 0], dst]), np.concatenate([pairs[:, 0], src]).astype(np.int64)
    if time is not None:
        when = np.concatenate([np.asarray(time), np.asarray(graph.edge_data["time"])])
        code = code * len(code) + np.unique(when, return_inverse=True)[1]
    code = np.unique(code, return_inverse=True)[1]
    return code[: len(pairs)], code, joined


def _others(rng: np.random.Generator, source: np.ndarray, taken: np.ndarray, size: int) -> np.ndarray:
    """For each source a number below `size`, uniform where `source * size + number` is not in `taken`."""
    begin, end = (np.searchsorted(taken, (source + more) * size) for more in (0, 1))
    left = size - (end - begin)
    if (left < 1).any():
        raise ValueError(
            f"{np.count_nonzero(left < 1)} pairs have a source with an edge to each of the {size} nodes that "
            "their other end could be: there are no negatives to draw"
        )
    return nth_free(taken, source, rng.integers(0, left), size)


def nth_free(
    taken: Int[np.ndarray, " m"], row: Int[np.ndarray, "*#shape"], rank: Int[np.ndarray, "*shape"], size: int
) -> Int[np.ndarray, "*shape"]:
    """The number of this rank, from 0, among those of its row that are not taken.

    Numbers are below `size`; `taken` are distinct `row * size + number`, ascending; so many are left.

    >>> nth_free(np.array([1, 2, 5]), np.array([0, 1]), np.array([1, 1]), size=5)
    array([3, 2])
    """
    of, at = taken // max(size, 1), np.arange(len(taken))
    begin = np.searchsorted(taken, row * size)
    # within a row the ascending list of how many free numbers come before each taken one
    free = taken - of * size - (at - np.searchsorted(of, of))
    passed = np.searchsorted(of * (size + 1) + free, row * (size + 1) + rank, side="right")
    return rank + (passed - begin)
