"""The options of `experiments.recommend`."""

from dataclasses import dataclass

from experiments.common.config import RunOptions
from jsage.recipes.options import option

CONVS = ("gcn", "pinsage")
NEIGHBORHOODS = ("edges", "walks", "items")
LOSSES = ("softmax", "margin")


@dataclass(frozen=True)
class PinSageOptions:
    """What is of PinSage (Ying et al., 2018); nothing of it by default."""

    conv: str = option("gcn", "the layers: means without matrices, or PinSAGEConv", CONVS)
    neighborhoods: str = option(
        "edges",
        "what a node reads: its edges; the items that walks from it visit most; for an item those that share "
        "most users with it",
        NEIGHBORHOODS,
    )
    loss: str = option("softmax", "over an item and all negatives, or max-margin", LOSSES)
    delta: float = option(1.0, "the margin of the loss that has one")
    hard_negatives: int = option(0, "hard negatives of a user in a step at most, one more an epoch")
    hard_ranks: tuple[int, ...] = option((50, 300), "their first rank by visits of walks, and the one after")
    nearest: int = option(0, "find so many items a user by jsage.infer.nearest, not the ranks of all")


@dataclass(frozen=True)
class Config(PinSageOptions, RunOptions):
    """Every option; the defaults are the one recipe."""

    dataset: str = option("taste", "taste, or an .npz file with users and items, or with typed edges")
    relation: str | None = option(None, "the edge type to recommend by; see the rule above unless given")
    fanouts: tuple[int, ...] = option((10, 10), "neighbors drawn a hop, one layer each")
    width: int = option(64, "width of the embeddings")
    batch_size: int = option(128, "users a step")
    positives: int = option(4, "items of each user that are asked for in a step, at most")
    negatives: int = option(1024, "items that all users of a step share as negatives, at most")
    lr: float = option(0.01, "learning rate of Adam")
    epochs: int = option(100, "epochs at most, each over all users")
    patience: int = option(15, "epochs without a better validation NDCG before stopping")
    runs: int = option(1, "how many runs, with seeds 0 .. runs-1 of the split and the training")
