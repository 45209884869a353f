"""Train GraphSAGE to predict links, beside a features-only MLP, common neighbors and other heuristics.

    python -m experiments.links                                   # the digits' graph: under a minute
    python -m experiments.links --dataset cora.npz --runs 5
    python -m experiments.links --dataset collegemsg.npz          # has times: what comes next
    python -m experiments.links --devices 8                       # graph and features split over a mesh

A random 85/5/10 split of an undirected graph's edges, with fixed negatives; the edges of a batch are in no
neighborhood of its step. The model with the best validation AUC is tested.

Events with times are split in their order, 70/15/15, and each is asked as of its own time, over all that was
before: the latest events of both ends with their ages, how often and how long ago either had events, and what
they share (`--parts` leaves some out). The negative has a random destination, of those that events lead to;
scores beside any node, of events with a node that training has not seen, and the MRR among 100 negatives of
TGB's kind are printed too. EdgeBank and a boosted tree over 12 counts stand beside.

A negative could be joined: it has the sides of its link's ends, which are the nodes' types or, in a graph of
users and items, its two colors (`jsage.graph.node_sides`). `--test-negatives` has harder ones. How they were
drawn is printed, and is in the JSON and in run.json.

On a mesh (`--devices`) a negative that is an edge to train on stays; without one it is drawn again. A step
holds the features of all nodes that its pairs and negatives draw: wide ones take a smaller `--batch-size`.
"""

import dataclasses
import sys
from functools import partial

import numpy as np

from experiments.common.datasets import kept
from experiments.common.mesh import virtual
from experiments.common.options import command, read
from experiments.links import mesh
from experiments.links.config import Config
from experiments.links.events import in_time
from experiments.links.learners import mlp, sage
from experiments.links.problems import Problem, edge_problem, event_problem, load
from experiments.links.programs import Programs, compile_programs, fit, predict
from jsage.recipes.loop import Run
from jsage.recipes.plots import save_tsne
from jsage.recipes.record import Record
from jsage.recipes.report import Scores, print_scores, summarize_all


def main(config: Config) -> dict:
    """Train `config.runs` models and the baseline; print the table; return what `--json` writes."""
    if config.devices:
        virtual(config.devices)
    dataset, scaling = load(config)
    by_time = "time" in dataset.graph.edge_data
    config = completed(config, by_time)
    make = event_problem if by_time else edge_problem
    makers = {"GraphSAGE": in_time if by_time else sage}
    if dataset.features is not None and not by_time and not config.devices:
        makers["MLP (features only)"] = mlp
    scores: Scores = {}
    runs: dict[str, list[Run]] = {}
    programs: dict[str, Programs] = {}
    size, drawn = 0, ""
    for seed in range(config.runs):
        problem = make(dataset, seed, config)
        if config.devices:  # again for each split, whose shards have other sizes
            programs["GraphSAGE"], tables = mesh.place_tables(problem.tables, config)
            problem = problem._replace(tables=tables)
        pairs, drawn = min(config.pairs, problem.tables.pairs.shape[0]), problem.drawn
        for name, maker in makers.items():
            if name not in programs:
                programs[name] = compile_programs(maker(config, problem.tables), config)
            about = {"negatives_drawn": problem.drawn, **kept(scaling)}
            with Record(name, seed, config, pairs, dataset, about) as record:
                run, found = train(programs[name], problem, config, record)
            runs.setdefault(name, []).append(run)
            scores.setdefault(name, []).append(found)
        size = len(problem.test.positive)
        for name, values in problem.plain.items():
            scores.setdefault(name, []).append(problem.test.rate(values))
    print(f"negatives: {drawn}; --test-negatives says otherwise")
    kind = "events" if by_time else "links"
    print_scores(scores, f"{size:,} test {kind}, negatives: {config.test_negatives}")
    traces = programs["GraphSAGE"].traces["epoch"]
    return summarize_all(config, "auc", scores, runs["GraphSAGE"], traces) | {"negatives_drawn": drawn}


def train(programs: Programs, problem: Problem, config: Config, record: Record) -> tuple[Run, dict]:
    """One run and its test scores."""
    run = fit(programs, problem.tables, problem.val, config, record)
    if record.folder:
        value, shade = problem.colors
        rows = np.asarray(programs.embed(run.params, problem.tables))
        save_tsne(record.folder / "tsne.png", rows, value, f"nodes, colored by {shade}")
    return run, problem.test.rate(predict(programs, run.params, problem.tables, problem.test))


def completed(config: Config, by_time: bool) -> Config:
    """The options with what depends on the kind of links: events have a direction."""
    names = {"decoder": ("mlp", "pair"), "test_negatives": ("uniform", "destination")}
    unset = {name: values[by_time] for name, values in names.items() if getattr(config, name) is None}
    return dataclasses.replace(config, **unset)


def parse(arguments: list[str] | None = None) -> Config:
    """Read the command line."""
    return read(Config, arguments, "links", __doc__)


def run(arguments: list[str] | None = None) -> int:
    """The command: 0, or 2 and one line on standard error for bad input."""
    return command(main, partial(parse, arguments))


if __name__ == "__main__":
    sys.exit(run())
