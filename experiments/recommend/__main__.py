"""Recommend items to users by GraphSAGE on their graph, beside popularity, SVD and matrix factorization.

    python -m experiments.recommend                                 # made to order: taste and popularity
    python -m experiments.recommend --conv pinsage --neighborhoods items
    python -m experiments.recommend --dataset fb15k_237.npz --runs 5
    python -m experiments.recommend --dataset fb15k_237.npz --relation 19

Users are the heads of a relation and items its tails. Unless `--relation` names one, it is that with the
most triples among those whose heads are never its tails. A tenth of each user's items is for validation,
a fifth for testing, and all other items compete with them. The epoch with the best validation NDCG@10 is
tested; so is the best of the decompositions, over ranks and normalizations, and with `--neighborhoods items`
the best of the nearest items of a user's items, over how many of them.
"""

import sys
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.options import command, read
from experiments.recommend.baselines import Factors, knn_factors, popularity, svd_factors
from experiments.recommend.config import Config
from experiments.recommend.data import Held, as_graph, hold, load, split_items
from experiments.recommend.learners import Tables, sage, table
from experiments.recommend.negatives import rank_items
from experiments.recommend.neighborhoods import read_along
from experiments.recommend.programs import METRIC, Programs, compile_programs, fit, rate
from experiments.recommend.taste import Interactions
from jsage.graph import in_degrees
from jsage.recipes.loop import Run
from jsage.recipes.plots import save_tsne
from jsage.recipes.record import Record
from jsage.recipes.report import Scores, print_scores, summarize_all


class Problem(NamedTuple):
    """One split: what programs read, what is validated and tested, and rows without learning."""

    tables: Tables
    val: Held
    test: Held
    baselines: dict[str, Factors]


MODELS = {"gcn": "GraphSAGE", "pinsage": "PinSage"}
"""`--conv` -> the name of the model in the table"""


def main(config: Config) -> dict:
    """Train `config.runs` models and the tables; print the table; return what `--json` writes."""
    data = load(config.dataset, config.relation)
    first, sizes = MODELS[config.conv], (data.num_users, data.num_items)
    learners = {first: sage(config, *sizes), "matrix factorization": table(config, *sizes)}
    programs = {name: compile_programs(learner, config) for name, learner in learners.items()}
    runs: dict[str, list[Run]] = {name: [] for name in programs}
    scores: Scores = {first: []}
    title = ""
    for seed in range(config.runs):
        problem = make_problem(data, seed, config)
        factors = dict(problem.baselines)
        for name, compiled in programs.items():
            run = train(name, compiled, problem, seed, config, data)
            runs[name].append(run)
            factors[name] = compiled.factors(run.params, problem.tables)
        for name, found in factors.items():
            scores.setdefault(name, []).append(rate(found, problem.test, config.nearest))
        users, pairs = problem.test.relevant.shape[0], problem.test.user.shape[0]
        title = f"{pairs:,} test items of {users:,} users, {data.num_items:,} items"
    print_scores(scores, title)
    return summarize_all(config, METRIC, scores, runs[first], programs[first].traces["epoch"])


def make_problem(data: Interactions, seed: int, config: Config) -> Problem:
    """Hold out some of each user's items; test with those of validation known."""
    split, num_users = split_items(data, seed), data.num_users
    val = hold(split.val, split.graph, num_users)
    test = hold(split.test, as_graph(np.concatenate([split.train, split.val]), data), num_users)
    degree = np.asarray(in_degrees(split.graph))
    prior = np.log(np.maximum(degree[num_users:], 0.5)).astype(np.float32)
    users = np.flatnonzero(degree[:num_users]).astype(np.int32)
    walk, rank = jax.random.split(jax.random.key(seed))
    read = read_along(walk, split.graph, num_users, config)
    hard = rank_items(rank, split.graph, num_users, config)
    tables = Tables(split.graph, *read, jnp.asarray(users), jnp.asarray(prior), hard)

    def best(found: dict[str, Factors]) -> Factors:
        return max(found.values(), key=lambda factors: rate(factors, val, config.nearest)[METRIC])

    baselines = {"popularity": popularity(split.graph, num_users)}
    baselines["SVD"] = best(svd_factors(split.graph, num_users))
    if config.neighborhoods == "items":
        baselines["item kNN"] = best(knn_factors(split.graph, num_users))
    return Problem(tables, val, test, baselines)


def train(
    name: str, programs: Programs, problem: Problem, seed: int, config: Config, data: Interactions
) -> Run:
    """One run."""
    size = problem.tables.users.shape[0]
    with Record(name, seed, config, size, data) as record:
        run = fit(programs, problem.tables, problem.val, config, record)
    if record.folder:
        rows = np.asarray(programs.factors(run.params, problem.tables).items)
        taken = np.log10(1 + np.asarray(problem.baselines["popularity"].items)[:, 0])
        save_tsne(record.folder / "tsne.png", rows, taken, "items, colored by log10(1 + training users)")
    return run


def parse(arguments: list[str] | None = None) -> Config:
    """Read the command line."""
    return read(Config, arguments, "recommend", __doc__)


def run(arguments: list[str] | None = None) -> int:
    """The command: 0, or 2 and one line on standard error for bad input."""
    return command(main, partial(parse, arguments))


if __name__ == "__main__":
    sys.exit(run())
