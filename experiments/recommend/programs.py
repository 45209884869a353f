"""One training run of a recommender, and how high held-out items come among all others."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments.common.programs import make_optimizer, make_start
from experiments.recommend.baselines import Factors
from experiments.recommend.config import Config
from experiments.recommend.data import Batch, Held
from experiments.recommend.learners import Learner, Tables
from jsage.graph import SortedGraph, has_edge
from jsage.infer import nearest
from jsage.losses import masked_mean
from jsage.metrics import Ranks, ranking
from jsage.recipes.loop import Run, StoppingPolicy, rank_by_score, train_until_stopped
from jsage.recipes.record import Record
from jsage.sampling import batches
from jsage.sampling import epoch as shuffle
from jsage.train import TrainState, make_update, train_epoch

K, METRIC = 10, "ndcg@10"
METRICS = (f"recall@{K}", METRIC, "mrr")
QUERIES = 512
"""Pairs that are ranked at once."""


class Programs(NamedTuple):
    """The compiled parts of a run."""

    start: Callable[[Array, Tables], TrainState]
    epoch: Callable[[TrainState, Tables, Batch], tuple[TrainState, dict]]
    factors: Callable[[Any, Tables], Factors]
    traces: Counter[str]


def compile_programs(learner: Learner, config: Config) -> Programs:
    """Jit the start, the scanned epoch and the embedding of all; every table is an argument."""
    optimizer = make_optimizer(0.0, config.lr)
    traces: Counter[str] = Counter()

    def epoch(state, tables, batches):
        traces["epoch"] += 1

        def loss_fn(params, stats, batch, key):
            losses, valid = learner.losses({"params": params}, tables, batch, key)
            sums = {"loss": losses.sum(), "weight": valid.sum().astype(jnp.float32)}
            return masked_mean(losses.ravel(), valid.ravel()), (sums, stats)

        return train_epoch(make_update(loss_fn, optimizer), state, batches)

    def factors(params, tables):
        return learner.factors({"params": params}, tables)

    return Programs(
        make_start(learner.init, optimizer), jax.jit(epoch, donate_argnums=0), jax.jit(factors), traces
    )


def fit(programs: Programs, tables: Tables, val: Held, config: Config, record: Record) -> Run:
    """Train one run to the end, or on from its last checkpoint; the best validation score is kept.

    An epoch meets every user once; the run ends when `config.patience` epochs were no better.
    """
    size = min(config.batch_size, tables.users.shape[0])

    def advance(state: TrainState, number: int) -> tuple[TrainState, dict]:
        users, mask = shuffle(jax.random.fold_in(record.key, number), tables.users, size)
        return programs.epoch(state, tables, Batch(users, mask, jnp.full(len(users), number, jnp.int32)))

    def validate(state: TrainState) -> dict[str, float]:
        factors = programs.factors(state.params, tables)
        return {f"val_{METRIC}": rate(factors, val, config.nearest)[METRIC]}

    policy = StoppingPolicy(config.epochs, config.patience, rank_by_score(f"val_{METRIC}"))
    return train_until_stopped(programs.start(record.key, tables), advance, validate, policy, record)


def rate(factors: Factors, held: Held, found: int = 0) -> dict[str, float]:
    """Recall@10 and NDCG@10, each the mean over users with held-out items; the pairs' mean reciprocal rank.

    All items compete but those known; so do a user's other held-out ones, which is what Recall counts on.
    With `found`, that many are retrieved for each user, and all that are not come last.
    """
    return {name: float(value) for name, value in zip(METRICS, _rate(factors, held, found), strict=True)}


@partial(jax.jit, static_argnums=2)
def _rate(factors: Factors, held: Held, found: int) -> tuple[Array, Array, Array]:
    flat = _retrieved(factors, held, found) if found else _ranked(factors, held)
    none = jnp.zeros(held.relevant.shape, jnp.int32)
    lay = none.at[held.row, held.column].set
    laid = Ranks(lay(flat.above), lay(flat.tied))
    recall, ndcg = (metric(laid, held.relevant, K).mean() for metric in (ranking.recall, ranking.ndcg))
    return recall, ndcg, ranking.mrr(flat)


def _ranked(factors: Factors, held: Held) -> Ranks:
    """Each pair among all items."""
    num = held.user.shape[0]
    places, _ = batches(jnp.arange(num, dtype=jnp.int32), min(QUERIES, num))

    def ranks(place: Array) -> Ranks:
        user = held.user[place]
        rows, items = factors.users[user], factors.items

        def score(ids: Array) -> Array:
            return jnp.matmul(rows, items[ids].T, precision="highest")

        return ranking.rank_all(score, held.item[place], len(items), known=held.known, rows=user)

    found = jax.lax.map(ranks, places)
    return Ranks(found.above.ravel()[:num], found.tied.ravel()[:num])


def _retrieved(factors: Factors, held: Held, k: int) -> Ranks:
    """Each pair in the list of its user's `k` nearest items, or last."""
    num, num_items = held.relevant.shape[0], len(factors.items)
    users = jnp.zeros(num, jnp.int32).at[held.row].set(held.user)
    known = SortedGraph(held.known.indptr, held.known.indices)

    def find(row: Array) -> Array:
        user = users[row]

        def allow(items: Array) -> Array:
            return ~has_edge(known, *jnp.broadcast_arrays(items[None], user[:, None]))

        return jnp.asarray(nearest(factors.users[user], factors.items, min(k, num_items), allow=allow).id)

    rows, _ = batches(jnp.arange(num, dtype=jnp.int32), min(QUERIES, num))
    found = jax.lax.map(find, rows).reshape(-1, min(k, num_items))
    same = found[held.row] == held.item[:, None]
    above = jnp.where(same.any(1), same.argmax(1), num_items).astype(jnp.int32)
    return Ranks(above, jnp.zeros_like(above))
