"""Train GraphSAGE to predict node labels, beside an MLP on features, linear smoothing and the trivial guess.

    python -m experiments.classify                                    # 1,797 digits: about 15 s
    python -m experiments.classify --dataset communities              # 200 k nodes, 4 M edges: minutes
    python -m experiments.classify --dataset cora.npz --runs 5
    python -m experiments.classify --dataset graph_directory --aggregator max --fanouts 25,10

One recipe serves every data set; the model with the best validation score is tested. README.md has the
scores.
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np

from experiments.common.config import DRAWS, Config, parse
from experiments.common.datasets import kept, prepare, read
from experiments.common.learners import check_draw, mlp, sage, weigh
from experiments.common.options import command
from experiments.common.runs import task_of, train_all
from experiments.common.smoothing import linear_smoothing
from experiments.common.subgraphs import Plan, on_subgraphs
from jsage.recipes.plots import save_plots
from jsage.recipes.report import baseline, print_tables, summarize, summarize_all


def main(config: Config) -> dict:
    """Train `config.runs` models and the baselines; print tables; return what `--json` writes."""
    dataset, training_graph, scaling = prepare(read(config), config)
    check_draw(dataset.graph, config)
    task = task_of(dataset, config)
    plain_data, plain_graph = dataset, training_graph
    dataset, training_graph = weigh(dataset, training_graph, config)
    draw, identity = DRAWS[config.draw], dataset.features is None
    learner = sage(config, task.width, dataset.graph.num_nodes, identity=identity, draw=draw)
    unweighed = None if training_graph is plain_graph else plain_graph
    learner = on_subgraphs(learner, Plan(config, task.width, identity, unweighed))
    learner = learner._replace(about=kept(scaling))
    found = train_all("GraphSAGE", learner, task, dataset, training_graph, config)
    scores = {"GraphSAGE": found.scores}
    if dataset.features is not None:
        plain = mlp(config, task.width)._replace(about=kept(scaling))
        plain = train_all("MLP", plain, task, dataset, training_graph, config)
        scores["MLP (features only)"] = plain.scores
        if (linear := linear_smoothing(task, plain_data, plain_graph, config.layers)) is not None:
            scores["linear on smoothed features"] = [linear]
    name, guess = baseline(task, np.asarray(dataset.train), np.asarray(dataset.test))
    scores[name] = [guess]
    print_tables(task, dataset, scores, found.outputs)
    if task.calls:
        levels = ", ".join(f"{level:.3f}" for level in found.thresholds)
        print(f"{task.calls}: {levels}; --threshold says otherwise")
    if config.out:
        save_plots(Path(config.out), task, dataset, found.runs, found.outputs)
    given = config, task.metric, scores, found.runs, found.traces["epoch"]
    every = summarize_all(*given)["scores"]
    return summarize(*given) | {"scores": every, "thresholds": found.thresholds}


def run(arguments: list[str] | None = None) -> int:
    """The command: 0, or 2 and one line on standard error for bad input."""
    return command(main, partial(parse, arguments, "classify", __doc__))


if __name__ == "__main__":
    sys.exit(run())
