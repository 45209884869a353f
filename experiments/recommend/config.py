"""The options of `experiments.recommend`."""

from dataclasses import dataclass

from experiments.common.config import RunOptions
from jsage.recipes.options import option


@dataclass(frozen=True)
class Config(RunOptions):
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
