"""The options of `experiments.links`."""

from dataclasses import dataclass

from experiments.common.config import (
    AGGREGATORS,
    PLACEMENTS,
    EncoderOptions,
    FeatureOptions,
    MeshOptions,
    RunOptions,
    TrainingOptions,
)
from jsage.recipes.options import option

DECODERS = ("dot", "cosine", "bilinear", "mlp", "pair")
"""Scores of two embeddings; `pair` and `bilinear` tell `(u, v)` from `(v, u)`."""
NEGATIVES = ("pairs", "uniform", "degree")
"""Both ends of a negative drawn evenly; or the source kept, and the other end drawn evenly or by degree."""
TEST_NEGATIVES = ("uniform", "destination", "historical")
"""What links are told from: any pair that could be joined (of an event, any other destination); another end
among the nodes that occur as destinations; pairs that were joined before and are not now."""
PARTS = ("neighbors", "times", "attention", "counts", "pairs")
"""Of the model of events: latest neighbors, the ages of their events, attention to them; how often and how
long ago nodes, and pairs, had events."""
SLOTLESS = [name for name in AGGREGATORS if name != "lstm"]


@dataclass(frozen=True)
class Config(RunOptions, MeshOptions, TrainingOptions, EncoderOptions, FeatureOptions):
    """Every option; the defaults are the one recipe."""

    decoder: str | None = option(
        None, "the score of two embeddings; mlp unless given, pair for events", DECODERS
    )
    aggregator: str = option("mean", "how neighbors are reduced", SLOTLESS)
    fanouts: tuple[int, ...] = option((10, 10), "neighbors drawn a hop, one layer each")
    recent: tuple[int, ...] = option((10,), "latest events read a hop, one layer each: of graphs with times")
    parts: str = option(",".join(PARTS), "what the model of events is made of; fewer for an ablation")
    hidden: int = option(128, "width of the layers, the embeddings and the decoder")
    identity: int = option(64, "width of learned embeddings, for graphs without features")
    epochs: int = option(60, "epochs at most")
    pairs: int = option(10_000, "training pairs an epoch at most, drawn again")
    batch_size: int = option(1024, "pairs a step")
    negatives: int = option(1, "negatives a pair")
    noise: str = option(
        "pairs",
        "both ends of a negative drawn evenly, or one (of events always): evenly or by degree",
        NEGATIVES,
    )
    test_negatives: str | None = option(
        None,
        "what links are validated and tested against: any other pair, or destination, of the same sides "
        "(uniform: the default without times); a destination that occurs as one (destination: the default "
        "with times); or, with times, a pair that was joined before",
        TEST_NEGATIVES,
    )
    lr: float = option(0.005, "learning rate of Adam")
    weight_decay: float = option(0.0, "L2 penalty on the parameters")
    dropout: float = option(0.3, "rate on every layer's inputs")
    patience: int = option(15, "epochs without a better validation AUC before stopping")
    by_time: bool = option(False, "split by the edges' times; so are all graphs that have them")
    devices: int = option(0, "train on a mesh of so many devices, virtual ones on a CPU; 0: no mesh")
    placement: str = option("hashed", "which device of the mesh owns a node", list(PLACEMENTS))
    runs: int = option(1, "how many runs, with seeds 0 .. runs-1 of the split and the training")
    out: str | None = option(None, "folder for checkpoints, metrics.jsonl and pictures")
