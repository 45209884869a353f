"""Layer-wise inference against Algorithm 1 in NumPy, for every aggregator and option, in both modes."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from helpers import AGGREGATORS, AWKWARD, NUM_NODES, features

from jsage import aggregate, sample_blocks
from jsage.graph import from_edges
from jsage.infer import Streaming, embed_all, embed_to_file, layer
from jsage.nn import LSTM, GraphSAGE, Pool, SAGEConv, jump_concat, jump_max

ALL = {**AGGREGATORS, "max pool": Pool(), "mean pool": Pool(reduce=aggregate.mean), "lstm": LSTM()}
HUB = NUM_NODES * len(AWKWARD)  # the node that every edge of its own comes into
NODES = HUB + 4
OPTIONS = {
    "plain": {},
    "narrowing": {"hidden": 3},
    "three layers, layer norm": {"num_layers": 3, "norm": nn.LayerNorm},
    "batch norm": {"norm": nn.BatchNorm},
    "residual, concat, normalize, project": {
        "residual": True,
        "conv": {"concat": True, "normalize": True, "project": True},
    },
    "jump_concat, residual, batch norm": {"jump": jump_concat, "residual": True, "norm": nn.BatchNorm},
    "jump_max": {"jump": jump_max},
    "identity beside features": {"identity": (NODES, 4)},
    "identity alone": {"identity": (NODES, 4)},
}
CASES = [(name, "plain") for name in ALL] + [("mean", option) for option in OPTIONS if option != "plain"]
CASES += [("gcn", "narrowing"), ("lstm", "residual, concat, normalize, project")]


def edges():
    """All awkward graphs beside each other, and a hub that reads some nodes hundreds of times."""
    found = [
        np.concatenate([ends[i] + NUM_NODES * n for n, ends in enumerate(AWKWARD.values())]) for i in (0, 1)
    ]
    src = np.concatenate([found[0], np.random.default_rng(3).integers(0, NODES, 300)]).astype(np.int32)
    dst = np.concatenate([found[1], np.full(300, HUB)]).astype(np.int32)
    return src, dst, 0.2 * features(7, len(src), 1)[:, 0]


SRC, DST, WEIGHT = edges()
GRAPH = from_edges(SRC, DST, NODES, weight=WEIGHT)
LISTS = reference.edges(SRC, DST, NODES, WEIGHT)
SUBSET = np.array([HUB, 3, 17, 3, 50, NODES - 1])
SMALL = Streaming(rows=16, edges=64, seconds=0.0)


def case(name, option):
    """A model, its parameters, its features and what it should give."""
    more = dict(OPTIONS[option])
    conv = partial(SAGEConv, aggregate=ALL[name], **more.pop("conv", {}))
    model = GraphSAGE(**{"hidden": 6, "out": 3, "conv": conv, **more})
    table = None if option == "identity alone" else features(1, NODES)
    shape = None if table is None else table[:3]
    blocks = jax.eval_shape(
        partial(sample_blocks, fanouts=(2,) * model.num_layers), jax.random.key(0), GRAPH, jnp.arange(2)
    )
    blocks = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), blocks)
    params = reference.filled(jax.eval_shape(model.init, jax.random.key(0), shape, blocks))
    names = {nn.LayerNorm: "layer", nn.BatchNorm: "batch", jump_concat: "concat", jump_max: "max", None: None}
    expected = reference.graphsage(
        reference.float64(params),
        None if table is None else reference.float64(table),
        [LISTS] * model.num_layers,
        name,
        norm=names[more.get("norm")],
        jump=names[more.get("jump")],
        residual=more.get("residual", False),
        **{key: key in OPTIONS[option].get("conv", {}) for key in ("concat", "normalize")},
    )
    return model, params, table, expected


def close(found, expected):
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize(("name", "option"), CASES)
def test_all_nodes_and_some_are_those_of_algorithm_1(name, option, tmp_path, monkeypatch):
    for size, value in (("ROWS", 32), ("GROUP", 8), ("PIECE", 16)):
        monkeypatch.setattr(layer, size, value)
    model, params, table, expected = case(name, option)
    close(embed_all(model, params, GRAPH, table), expected)
    close(embed_all(model, params, GRAPH, table, nodes=SUBSET), expected[SUBSET])
    for i, options in enumerate((SMALL, SMALL._replace(nodes=SUBSET, gather_on_host=True))):
        embed_to_file(str(tmp_path / f"{i}.npy"), model, params, GRAPH, table, options)
        close(np.load(tmp_path / f"{i}.npy"), expected if i == 0 else expected[SUBSET])
