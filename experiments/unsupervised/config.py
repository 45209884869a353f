"""The options of `experiments.unsupervised`."""

from dataclasses import dataclass

from experiments.common.config import LabelOptions, LearnerOptions, RunOptions
from jsage.recipes.options import option

OBJECTIVES = ("skip_gram", "info_nce", "dgi")


@dataclass(frozen=True)
class Config(RunOptions, LearnerOptions, LabelOptions):
    """Every option; the defaults are the one recipe."""

    objective: str = option("info_nce", "what is learned from", OBJECTIVES)
    batch_size: int = option(512, "starts of walks a step")
    length: int = option(5, "steps of a walk")
    negatives: int = option(20, "negatives a step, drawn by degree ** 0.75 (skip_gram)")
    weight: float = option(20.0, "Q: how much negatives weigh (skip_gram)")
    normalize: bool = option(False, "score by cosine (skip_gram)")
    temperature: float = option(1.0, "cosines are divided by it (info_nce)")
    hidden: int = option(256, "width of the hidden layers")
    width: int = option(256, "width of the embeddings")
    steps: int = option(20, "updates an epoch")
    epochs: int = option(20, "epochs, at most")
    lr: float = option(0.001, "learning rate of Adam")
    weight_decay: float = option(0.0, "L2 penalty on the parameters")
    dropout: float = option(0.5, "rate on every layer's inputs")
    full_batch: bool = option(False, "encode the whole graph at every step instead of samples")
    patience: int = option(5, "epochs without a better validation score before stopping")
    out: str | None = option(None, "folder for embeddings, checkpoints, metrics.jsonl and a picture")
