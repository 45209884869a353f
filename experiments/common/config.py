"""The options that experiments share: mix-ins, and what the names among them mean."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import numpy as np

from experiments.common.options import one_a_layer, read
from jsage import aggregate, recipes
from jsage.graph import Graph, Placement, balanced, contiguous, hashed, in_degrees
from jsage.nn import LSTM, GATConv, GATv2Conv, GCNConv, GINEConv, Pool, SAGEConv, TransformerConv
from jsage.recipes.options import DataOptions, option
from jsage.recipes.scaling import SCALES
from jsage.recipes.tasks import TASKS, THRESHOLDS
from jsage.sampling import Labor, WeightedWithReplacement, without_replacement
from jsage.typing import AggregateFn, AnyDraw

AGGREGATORS: dict[str, Callable[[int], AggregateFn]] = {
    "mean": lambda width: aggregate.mean,
    "gcn": lambda width: aggregate.gcn,
    "max": lambda width: aggregate.max,
    "sum": lambda width: aggregate.sum,
    "pool": Pool,
    "meanpool": partial(Pool, reduce=aggregate.mean),
    "lstm": LSTM,
}
"""name -> the aggregator from its width, which only those with parameters have"""
CONVOLUTIONS: dict[str, type[nn.Module]] = {
    "sage": SAGEConv,
    "gcn": GCNConv,
    "gat": GATConv,
    "gatv2": GATv2Conv,
    "transformer": TransformerConv,
    "gine": GINEConv,
}
"""name -> the convolution"""
AUTO = "auto"
"""The name of a convolution that validation chooses."""
NORMS: dict[str, Callable[[], nn.Module] | None] = {
    "none": None,
    "layer": nn.LayerNorm,
    "batch": partial(nn.BatchNorm, momentum=0.9),
}
PLACEMENTS: dict[str, Callable[[Graph, int], Placement]] = {
    "contiguous": lambda graph, shards: contiguous(graph.num_nodes, shards),
    "hashed": lambda graph, shards: hashed(graph.num_nodes, shards),
    "balanced": lambda graph, shards: balanced(np.asarray(in_degrees(graph)), shards),
}
"""name -> the placement of a graph's nodes over so many shards"""
DRAWS: dict[str, AnyDraw] = {
    "uniform": without_replacement,
    "weighted": WeightedWithReplacement(),
    "labor": Labor(),
}
"""name -> how neighbors are drawn in training"""
BATCHES = ["neighbors", "clusters", "saint"]


@dataclass(frozen=True)
class RunOptions(recipes.RunOptions):
    """How long runs train, how many there are, and what they write."""

    FREE = recipes.RunOptions.FREE | {"json"}
    json: str | None = option(None, "write the result there; - is standard output")


@dataclass(frozen=True)
class FeatureOptions(DataOptions):
    """What is learned from, and how it is scaled."""

    scale: str = option("auto", "features: rows to length 1, to sum 1, columns standardized, or none", SCALES)


@dataclass(frozen=True)
class LabelOptions(FeatureOptions):
    """What is learned from, and what of it."""

    task: str | None = option(None, "read from the labels unless given", TASKS)
    labels: str = option("y", "the array of the .npz that holds the labels")


@dataclass(frozen=True)
class EncoderOptions:
    """What makes embeddings."""

    aggregator: str = option("gcn", "how neighbors are reduced", list(AGGREGATORS))
    fanouts: tuple[int, ...] = option(
        (10, 10), "neighbors drawn a hop, the seeds' own first; the last repeats"
    )
    hidden: int = option(64, "width of the hidden layers")
    dropout: float = option(0.6, "rate on every layer's inputs")


@dataclass(frozen=True)
class ModelOptions(EncoderOptions):
    """A GraphSAGE."""

    layers: int = option(2, "number of layers, one hop each")
    norm: str = option("none", "normalization of the hidden layers", list(NORMS))


@dataclass(frozen=True)
class TrainingOptions:
    """Steps of training."""

    batch_size: int = option(512, "seeds a step")
    lr: float = option(0.01, "learning rate of Adam")
    weight_decay: float = option(0.0005, "L2 penalty on the parameters")


@dataclass(frozen=True)
class LearnerOptions(TrainingOptions, ModelOptions):
    """A GraphSAGE that is trained on one device."""

    conv: str = option("sage", "the convolution; aggregators are sage's", list(CONVOLUTIONS))
    heads: int = option(8, "heads of attention in the hidden layers; the last layer has one")
    identity: int = option(128, "width of learned embeddings, for graphs without features")
    features: str = option(
        "auto",
        "of an .npz; auto: sparse where it holds CSR of which a tenth is not 0 at most, and the first layer "
        "reads that",
        ["auto", "sparse", "dense"],
    )
    full_batch: bool = option(False, "train on the whole graph at once instead of on samples")


@dataclass(frozen=True)
class MeshOptions:
    """Where nodes are, on a mesh of devices."""

    devices: int = option(0, "so many virtual devices of the CPU; 0: the devices that there are")
    placement: str = option("hashed", "which device owns a node", list(PLACEMENTS))


@dataclass(frozen=True)
class SupervisedOptions(RunOptions, TrainingOptions, ModelOptions, LabelOptions):
    """The one recipe for labels, on one device or on many."""

    epochs: int = option(600, "passes over the training nodes, at most")
    balanced: bool = option(False, "weigh rare classes up")
    threshold: str = option(
        "auto",
        "of two classes, where the rarer is called on: best F1 of it or best balanced accuracy on validation "
        "nodes, or half; auto: f1 where its share of the training nodes is below 0.2, else half",
        THRESHOLDS,
    )
    smoothing: float = option(0.2, "share of each label that all classes get alike")
    patience: int = option(
        100, "steps without a better validation score or loss before stopping; 40 epochs at least"
    )
    out: str | None = option(None, "folder for checkpoints, metrics.jsonl and plots")


@dataclass(frozen=True)
class Config(SupervisedOptions, LearnerOptions):
    """Every option of `experiments.classify` and `experiments.inductive`; the defaults are the one recipe."""

    conv: str = option(
        "sage",
        "the convolution; aggregators are sage's; auto: the model of the best validation score in a grid of "
        "gcn, sage, gat, a network without the graph and linear smoothing, their depth, scaling of features "
        "and weight decay (docs/experiments.md)",
        [*CONVOLUTIONS, AUTO],
    )
    tries: int = option(1, "runs of each model of --conv auto, with seeds 0 .. tries-1")
    draw: str = option("uniform", "how neighbors are drawn in training", list(DRAWS))
    batches: str = option(
        "neighbors", "what a step trains on: seeds with neighbors, whole clusters, or walks", BATCHES
    )
    subgraph: int = option(2048, "nodes of a batch of clusters or walks, about")


def parse(arguments: list[str] | None, name: str, text: str | None) -> Config:
    """Read the command line of an experiment with this `Config`."""
    config = read(Config, arguments, name, text)
    if config.conv == AUTO and name != "classify":
        raise ValueError(f"--conv auto is of experiments.classify, got it in {name}: name a convolution")
    return dataclasses.replace(config, fanouts=one_a_layer(config.fanouts, config.layers))
