"""Nodes and pairs as of a time, in numbers: how often and how long ago they had events, whom both met."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jsage.data import TimeSplit
from jsage.graph import (
    Graph,
    GraphBefore,
    Past,
    from_edges,
    node_past,
    pair_past,
    reverse,
    sort_by_time,
    sort_pairs_by_time,
)
from jsage.sampling import latest, pair_counts, sample_neighbors

NODE_RANKS = (1, 2, 4, 16)
"""Which of a node's latest events have their ages among the numbers."""
PAIR_RANKS = (1, 2, 4)
RECENT = 20
"""Latest events of each end whose other ends are compared."""


class History(NamedTuple):
    """All events in the orders that counting as of a time needs: who asks at a time reads none later."""

    both: Graph
    """Each event in both directions, by time; `way` is 1 where the node that reads it was its source."""
    into: Graph
    """By destination, in order of time."""
    out_of: Graph
    """By source."""
    pairs: Graph
    """By both ends."""
    unit: Array
    """Ticks that are 1 in ages: a millionth of the span of the events that are trained on."""


def make_history(split: TimeSplit, num_nodes: int, values: np.ndarray | None = None) -> History:
    """All parts of a split; `values`, one an event in their order, stand beside `way`."""
    events = np.concatenate([split.train, split.val, split.test])
    time = np.concatenate([split.train_time, split.val_time, split.test_time])
    both = np.stack([events, events[:, ::-1]], 1).reshape(-1, 2)
    way = np.tile(np.array([0, 1], np.float32), len(events))
    if values is not None:
        way = np.stack([way, np.repeat(values, 2).astype(np.float32)], 1)
    graph = from_edges(events[:, 0], events[:, 1], num_nodes, time=time)
    return History(
        sort_by_time(from_edges(both[:, 0], both[:, 1], num_nodes, time=np.repeat(time, 2), way=way)),
        sort_by_time(graph),
        sort_by_time(reverse(graph)),
        sort_pairs_by_time(graph),
        jax.device_put(np.float32(np.ptp(split.train_time.astype(np.float64)) / 1e6 or 1.0)),
    )


def numbers_of(past: Past, unit: Array) -> Array:
    """Counts and ages as numbers about 1, and which ages there are none of: `[*rows, 1 + 2 ranks]`."""
    there = past.ages >= 0
    age = jnp.log1p(jnp.where(there, past.ages, 0) / unit) / 10
    count = jnp.log1p(past.counts.astype(jnp.float32))[..., None] / 4
    return jnp.concatenate([count, jnp.where(there, age, 1.5), there.astype(jnp.float32)], -1)


def node_numbers(history: History, nodes: Array, time: Array) -> Array:
    """Events into and out of each node before its time."""
    tables = history.into, history.out_of
    return jnp.concatenate(
        [numbers_of(node_past(table, nodes, time, NODE_RANKS), history.unit) for table in tables], -1
    )


def pair_numbers(history: History, src: Array, dst: Array, time: Array) -> Array:
    """Events of each pair and of its reverse before its time, and what their latest neighbors share."""
    ways = ((src, dst), (dst, src))
    met = [numbers_of(pair_past(history.pairs, way, time, PAIR_RANKS), history.unit) for way in ways]
    return jnp.concatenate([*met, shared_numbers(history, src, dst, time)], -1)


def shared_numbers(history: History, src: Array, dst: Array, time: Array) -> Array:
    """How much of each end's latest neighbors the other end has among its own, and how often it is one."""
    ends = src, dst
    unread = jax.random.key(0)  # nothing is drawn
    one, other = (
        sample_neighbors(unread, GraphBefore(history.both, time), end, RECENT, draw=latest) for end in ends
    )
    counts = pair_counts(one, other)
    found = []
    for block, count, across in ((one, counts.one, dst), (other, counts.other, src)):
        own, shared = count[..., 0], count[..., 1]
        distinct = jnp.where(own > 0, 1 / jnp.maximum(own, 1), 0)
        met = (block.src == across[:, None]) & block.mask
        found += [(shared > 0).sum(1), ((shared > 0) * distinct).sum(1), met.sum(1), distinct.sum(1)]
    return jnp.log1p(jnp.stack(found, -1).astype(jnp.float32))
