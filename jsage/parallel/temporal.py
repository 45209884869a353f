"""Sampling as of a time on a sharded graph: frontier ids go out with their times, drawn events come back."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from jsage._internal.arrays import take
from jsage._internal.checks import check_fanout
from jsage.blocks import Tree
from jsage.graph import Location, before
from jsage.graph.adjacency import over_slots
from jsage.graph.as_of import VisibleFn
from jsage.parallel.exchange import Traffic, gather_remote, plan_route, traffic
from jsage.parallel.graph import ShardedGraph
from jsage.parallel.mesh import AXIS
from jsage.parallel.place import unpack
from jsage.parallel.sample import Drawn
from jsage.sampling import ByNode, Causal, choose, latest, node_bits, stack_hops
from jsage.sampling.by_node import threefry_key
from jsage.sampling.neighbors import append_slots
from jsage.sampling.temporal import append_times
from jsage.typing import PRNGKey


class TimedLocations(NamedTuple):
    """Where nodes are, each as of a time of its own."""

    places: Location
    time: Shaped[Array, " num_seeds"]


class OwnersDraw(NamedTuple):
    """How owners draw: what depends on nodes and times alone, so that it is what one device draws."""

    draw: Any = latest
    """`latest`, or `ByNode()`."""
    visible: VisibleFn = before
    axis: str = AXIS


def sample_temporal_blocks(
    key: PRNGKey,
    graph: ShardedGraph,
    seeds: TimedLocations,
    fanouts: Sequence[int],
    capacities: Sequence[int],
    how: OwnersDraw = OwnersDraw(),  # noqa: B008
) -> tuple[Location, tuple[Tree, ...], tuple[Traffic, ...]]:
    """`jsage.sampling.sample_temporal_blocks` on a sharded graph: `(ids, blocks, traffic of each hop)`.

    As `jsage.parallel.sample_blocks`: a node as of two times is asked for twice. The draws are those of one
    device, with `ByNode()` under `threefry_key(key)`. The graph is a `ShardedTimeSortedGraph`, else
    TypeError, as for other draws than `latest` and `ByNode()`. For use inside `on_mesh`.

    >>> import jax
    >>> from jsage.graph import contiguous, from_edges, sort_by_time
    >>> from jsage.parallel import make_mesh, on_mesh, replicate, shard_graph, split
    >>> mesh, events = make_mesh(jax.devices()[:1]), from_edges([1, 2], [0, 0], num_nodes=3, time=[10, 20])
    >>> graph = shard_graph(sort_by_time(events), contiguous(3, 1), mesh)
    >>> seeds = TimedLocations(Location(jnp.array([0, 0]), jnp.array([0, 0])), jnp.array([20, 30]))
    >>> seeds, key = split(seeds, mesh), replicate(jax.random.key(0), mesh)
    >>> def draw(key, graph, seeds):
    ...     return sample_temporal_blocks(key, graph, seeds, (1,), capacities=(2,))[0]
    >>> jax.jit(on_mesh(draw, mesh, (key, graph, seeds)))(key, graph, seeds).local
    Array([0, 0, 1, 2], dtype=int32)
    """
    if len(capacities) != len(fanouts):
        raise ValueError(
            f"expected one capacity for each fanout, got fanouts {tuple(fanouts)} and capacities "
            f"{tuple(capacities)}: measure_capacities gives them"
        )
    counts: list[Traffic] = []

    def hop(key: PRNGKey, frontier: TimedLocations, size: tuple[int, int]) -> Drawn:
        drawn, count = _sample(key, graph, frontier, size, how)
        counts.append(count)
        return drawn

    def extend(frontier: TimedLocations, block: Drawn, size: tuple[int, int]) -> tuple[TimedLocations, Tree]:
        places, tree = append_slots(frontier.places, block)
        time = append_times(frontier.time, block, causal=isinstance(how.visible, Causal))
        return TimedLocations(places, time), tree

    sizes = tuple(zip(fanouts, capacities, strict=True))
    first, *trees = stack_hops(threefry_key(key), seeds, sizes, hop, extend=extend)
    ids, tree = append_slots(first.dst, first)
    return ids, (tree, *trees), tuple(counts)


def _sample(
    key: PRNGKey,
    graph: ShardedGraph,
    seeds: TimedLocations,
    size: tuple[int, int],
    how: OwnersDraw,
) -> tuple[Drawn, Traffic]:
    """One hop: the owners are asked about distinct pairs of a row and a time."""
    fanout, capacity = size
    check_fanout(fanout)
    if how.draw is not latest and not isinstance(how.draw, ByNode):
        raise TypeError(
            f"owners draw what depends on nodes and times alone, latest or ByNode(), got {how.draw}: other "
            "draws depend on a node's place in a batch"
        )

    def answer(local: Int[Array, " rows"], time: Shaped[Array, " rows"]) -> Any:
        view: Any = how.visible(graph, time)
        start, stop = view.bounds(local)
        low, *high = (take(word, local) for word in graph.names)
        if how.draw is latest:
            offset, mask = latest(key, stop - start, fanout)
        else:
            offset, mask = choose(node_bits(key, low, fanout, *high), stop - start)
        (first, *rest), data = graph.edges(over_slots(start, 2) + offset, mask)
        return (jnp.where(mask, first, -1), *rest), view.with_age(data, over_slots(time, 2), mask)

    route = plan_route(seeds.places, how.axis, seeds.time)
    words, data = gather_remote(route, answer, capacity, how.axis)
    mask = words[0] >= 0
    places = zip(unpack(words, graph.id_limit), seeds.places, strict=True)
    src = Location(*(jnp.where(mask, new, own[:, None]) for new, own in places))
    return Drawn(seeds.places, src, mask, data), traffic(route, capacity)
