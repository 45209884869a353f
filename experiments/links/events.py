"""What is trained on events in time: latest neighbors with ages, counts of the past, and what pairs share.

Everything is as of the time that a pair is asked at, in training and in evaluation alike.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments.common.config import AGGREGATORS
from experiments.links.config import PARTS, Config
from experiments.links.history import History, node_numbers, pair_numbers
from experiments.links.learners import MAKE_DECODER, Learner, Tables, draw_negatives, in_batches
from jsage.blocks import Tree
from jsage.nn import EventFeatures, GATv2Conv, GraphSAGE, SAGEConv, Time2Vec, relu
from jsage.sampling import TimedNodes, sample_temporal_blocks
from jsage.sampling.temporal import append_times

HEADS = 4


class Numbers(nn.Module):
    """A perceptron of three layers that makes one number of many."""

    width: int
    dropout: float

    @nn.compact
    def __call__(self, rows: Array, *, deterministic: bool) -> Array:
        for _ in range(2):
            rows = nn.Dropout(self.dropout, deterministic=deterministic)(relu(nn.Dense(self.width)(rows)))
        return nn.Dense(1)(rows)[..., 0]


class EventModel(nn.Module):
    """A pair's logit: a decoder of both ends' embeddings, plus a perceptron of what was counted.

    Side by side, as "wide and deep" (Cheng et al., 2016): what is counted is not blurred by what is learned.
    """

    encoder: nn.Module | None
    events: nn.Module | None
    decoder: Callable
    numbers: nn.Module | None

    def embed(self, rows: Array | None, blocks: tuple[Any, ...], deterministic: bool = True) -> Array:
        """The seeds' rows."""
        encoder: Any = self.encoder
        if self.events is not None:
            blocks = tuple(self.events(block) for block in blocks)
        return encoder(rows, blocks, deterministic=deterministic)

    def score(
        self, ends: tuple[Array, Array] | None, counted: Array | None, deterministic: bool = True
    ) -> Array:
        """Logits of pairs."""
        found = [] if ends is None else [self.decoder(*ends)]
        if self.numbers is not None:
            found.append(self.numbers(counted, deterministic=deterministic))
        return sum(found[1:], found[0])

    def __call__(self, *inputs: Any) -> Array:
        read, counted = inputs
        rows = None if read is None else self.embed(*read)
        return self.score(None if rows is None else (rows, rows), counted)


def parts_of(config: Any) -> set[str]:
    """The parts of the model, by name, of the options of `links` or of `events`."""
    parts = set(filter(None, config.parts.split(",")))
    if unknown := sorted(parts - set(PARTS)):
        raise ValueError(f"--parts has no {unknown[0]!r}, but {', '.join(PARTS)}")
    if not parts & {"neighbors", "counts", "pairs"}:
        raise ValueError("--parts needs one of neighbors, counts and pairs")
    return parts


def event_model(config: Any, tables: Any) -> EventModel:
    """The model of the parts."""
    parts, width = parts_of(config), config.hidden
    times = "times" in parts
    if "attention" in parts:
        conv: Any = partial(GATv2Conv, heads=HEADS)
    else:
        conv = partial(SAGEConv, aggregate=AGGREGATORS[config.aggregator](width))
    identity = (tables.graph.num_nodes, config.identity)
    plain = "counts" not in parts and tables.features is None
    encoder = GraphSAGE(
        width,
        width,
        len(config.recent),
        partial(conv, edge="event" if times else "way"),
        dropout=config.dropout,
        identity=identity if plain else None,
    )
    reads = "neighbors" in parts
    return EventModel(
        encoder if reads else None,
        EventFeatures(Time2Vec(16, unit=float(tables.history.unit), log=True), beside=("way",))
        if reads and times
        else None,
        MAKE_DECODER[config.decoder or "pair"](config),
        Numbers(width, config.dropout) if parts & {"counts", "pairs"} else None,
    )


def in_time(config: Config, tables: Tables) -> Learner:
    """The model on what was before each pair's own time."""
    parts = parts_of(config)
    model = event_model(config, tables)
    embed = partial(embed_seeds, model, config)

    def init(key: Array, tables: Any) -> Any:
        nodes, time = jnp.zeros(1, jnp.int32), tables.graph.edge_data["time"][:1]
        rows = counted_of(parts, tables.history, nodes, nodes, time)
        return model.init(key, inputs(tables, nodes, time, config) if "neighbors" in parts else None, rows)

    def predict(variables: Any, tables: Any, pairs: Array, time: Any) -> Any:
        def scores(rows: Array) -> Any:
            (src, dst), when = pairs[rows].T, time[rows]
            h = embed(variables, tables, jnp.concatenate([src, dst]), jnp.concatenate([when, when]))
            ends = None if h is None else tuple(jnp.split(h, 2))
            counted = counted_of(parts, tables.history, src, dst, when)
            return model.apply(variables, ends, counted, method="score")

        return in_batches(scores, len(pairs), config.batch_size)

    def embed_all(variables: Any, tables: Any) -> Any:
        last = tables.graph.edge_data["time"].max() + 1

        def rows(nodes: Array) -> Any:
            late = jnp.full_like(nodes, last, last.dtype)
            h = embed(variables, tables, nodes, late)
            return node_numbers(tables.history, nodes, late) if h is None else h

        return in_batches(rows, tables.graph.num_nodes, config.batch_size)

    return Learner(init, partial(training_scores, model, config), predict, embed_all)


def embed_seeds(
    model: EventModel, config: Any, variables: Any, tables: Any, seeds: Array, time: Array, **options: Any
) -> Any:
    """The seeds' rows as of their times; None without neighbors."""
    if model.encoder is None:
        return None
    return model.apply(variables, *inputs(tables, seeds, time, config), method="embed", **options)


def training_scores(
    model: EventModel, config: Config, variables: Any, tables: Any, *batch: Array
) -> tuple[Array, Array, Array]:
    """`forward` of `Learner`: scores of events and of negatives, which are asked at their events' times."""
    rows, _, key = batch
    draw, drop, other = jax.random.split(key, 3)
    (src, dst), when, b = tables.pairs[rows].T, tables.time[rows], len(rows)
    far, valid = draw_negatives(draw, tables, src, dst, config)
    nodes = jnp.concatenate([src, dst, far.ravel()])
    whens = jnp.concatenate([when, when, jnp.repeat(when, config.negatives)])
    options = {"deterministic": False, "rngs": {"dropout": drop}}
    h = embed_seeds(model, config, variables, tables, nodes, whens, **options)
    ends: Any = (None, None)
    if h is not None:
        ends = (h[:b], h[b : 2 * b]), (h[:b], h[2 * b :].reshape(b, config.negatives, -1))
    across = jnp.broadcast_to(src[:, None], far.shape)
    counted = partial(counted_of, parts_of(config), tables.history)
    score: Any = partial(model.apply, variables, method="score", deterministic=False, rngs={"dropout": other})
    found = score(ends[0], counted(src, dst, when)), score(ends[1], counted(across, far, when[:, None]))
    return *found, valid


def counted_of(parts: set[str], history: History, src: Array, dst: Array, time: Array) -> Array | None:
    """What is counted of pairs and of both their ends, as the parts say."""
    shape, time = src.shape, jnp.broadcast_to(time, src.shape)
    src, dst, time = (ids.ravel() for ids in (src, dst, time))
    found = []
    if "counts" in parts:
        found += [node_numbers(history, end, time) for end in (src, dst)]
    if "pairs" in parts:
        found.append(pair_numbers(history, src, dst, time))
    return jnp.concatenate(found, -1).reshape(*shape, -1) if found else None


def inputs(tables: Any, seeds: Array, time: Array, config: Any) -> tuple[Array | None, tuple[Any, ...]]:
    """Rows of all that is read and the blocks: each seed's latest events before its own time, in all hops.

    Without counts and features nodes are told apart by learned embeddings.
    """
    timed, unread = TimedNodes(seeds, time), jax.random.key(0)  # nothing is drawn
    blocks: Any = sample_temporal_blocks(unread, tables.graph, timed, config.recent)
    blocks = tuple(
        block._replace(edge_data={name: block.edge_data[name] for name in ("age", "way")}) for block in blocks
    )
    first, when = blocks[0], time
    for block in reversed(blocks):  # each hop's slots are asked at the times of what reads them
        when = append_times(when, block)
    nodes = jnp.append(first.dst, first.src.ravel())
    rows = [node_numbers(tables.history, nodes, when)] if "counts" in parts_of(config) else []
    if tables.features is not None:
        rows.append(tables.features[nodes])
    if not rows:
        return None, blocks
    return jnp.concatenate(rows, -1), (Tree(first.mask, first.edge_data), *blocks[1:])
