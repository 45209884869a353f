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

from experiments.common import auto
from experiments.common.config import AUTO, Config, parse
from experiments.common.datasets import read
from experiments.common.options import command
from jsage.recipes.plots import save_plots
from jsage.recipes.report import baseline, print_tables, summarize, summarize_all


def main(config: Config) -> dict:
    """Train `config.runs` models and the baselines; print tables; return what `--json` writes."""
    given, dataset = config, read(config)
    choice = auto.choose(dataset, config) if config.conv == AUTO else None
    kind = auto.NETWORK
    if choice is not None:
        kind, config = choice.best.kind, choice.config
    problem = auto.make_problem(dataset, config)
    task, found = problem.task, auto.train(kind, problem, config)
    assert found is not None  # a linear model is chosen only where it was fitted
    scores = {kind if choice is None else f"auto: {kind}": found.scores}
    plain = config if choice is None else choice.plain
    problem = problem if choice is None else auto.make_problem(dataset, plain)
    if dataset.features is not None:
        for other in (auto.FEATURES, auto.LINEAR):
            if (beside := auto.train(other, problem, plain)) is not None:
                scores[other] = beside.scores
    name, guess = baseline(task, np.asarray(dataset.train), np.asarray(dataset.test))
    scores[name] = [guess]
    if choice is not None:
        auto.print_choice(choice, task.metric)
    print_tables(task, dataset, scores, found.outputs)
    if task.calls:
        levels = ", ".join(f"{level:.3f}" for level in found.thresholds)
        print(f"{task.calls}: {levels}; --threshold says otherwise")
    if config.out and kind != auto.LINEAR:  # which has no curves
        save_plots(Path(config.out), task, dataset, found.runs, found.outputs)
    told = given, task.metric, scores, found.runs, found.traces["epoch"]
    result = summarize(*told) | {"scores": summarize_all(*told)["scores"], "thresholds": found.thresholds}
    return result if choice is None else result | {"auto": choice.to_json()}


def run(arguments: list[str] | None = None) -> int:
    """The command: 0, or 2 and one line on standard error for bad input."""
    return command(main, partial(parse, arguments, "classify", __doc__))


if __name__ == "__main__":
    sys.exit(run())
