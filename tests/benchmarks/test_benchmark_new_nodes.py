"""The benchmark of new nodes on tiny graphs: that it measures what it says, and sees a compilation."""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import new_nodes
from benchmarks.common import run


@pytest.mark.slow
def test_the_rows_say_what_was_measured(tmp_path):
    arguments = ["--edges", "200,2000", "--requests", "5", "--varied", "6"]
    assert run(new_nodes.options(), new_nodes.main, [*arguments, "--json", str(tmp_path / "out.json")]) == 0
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["benchmark"] == "new_nodes"
    *ones, whole, sampled = report["rows"]
    assert [(row["mode"], row["graph_edges"]) for row in ones] == [
        (mode, edges) for mode in ("whole", "sampled") for edges in (200, 2000)
    ]
    assert all(0 < row["seconds_p50"] <= row["seconds_p99"] for row in ones)
    assert (whole["mode"], sampled["mode"]) == ("whole", "sampled")
    assert whole["compilations"] == sampled["compilations"] == 0
    assert whole["requests"] == 6


def test_a_compilation_is_seen():
    sizes = iter(range(100, 110))

    def embed(new):
        return jax.jit(lambda x: x * 2.5)(jnp.zeros(next(sizes)))  # a shape of its own for each request

    row = new_nodes.varied("whole", embed, 10, 3, np.random.default_rng(0))
    assert row["compilations"] >= 3


def test_both_graphs_have_neighborhoods_of_one_size():
    options = argparse.Namespace(edges=(200, 2000))
    for edges in options.edges:
        graph, features = new_nodes.place(edges, np.random.default_rng(0))
        assert (np.diff(graph.indptr) == new_nodes.DEGREE).all()
        assert len(features) == graph.num_nodes == edges // new_nodes.DEGREE
