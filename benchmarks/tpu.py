"""What the training step needs on a TPU, from the real TPU compiler and without a TPU: memory, copies.

    pip install 'jsage[tpu]'
    python -m benchmarks.tpu --json tpu.json
    python -m benchmarks.tpu --topology v5e:2x2 --aggregators mean,max --dtypes bfloat16 --double
    python -m benchmarks.tpu --topology v5e:16x16 --num-nodes 3e9 --num-edges 18e9 --json pod.json

The program is compiled for one chip of each topology; `--num-nodes` and `--num-edges` are that chip's share.
With `--mesh`, or with more than one chip can count (2^31 nodes or edges), it is compiled for all chips of the
topology, which share one graph (`benchmarks.sharded`): bytes are those of one chip, and `collectives` are
counted in the program's text.
`offenders` should be empty: whole tables that a step writes to memory, scatters and sorts larger than the
logits. `staged` names tables that the compiler reads into the chip's vector memory, to look them up there.
`--kinds skip_gram,links` compiles the steps of `benchmarks.pairs`, whose limit is their number of seeds.
`--lanes 1` shows what happens to rows that are not whole lanes.
"""

import argparse
import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_WORKER_ID", "0")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is opened, so none needs to be locked

from jax.experimental import topologies

from benchmarks import ahead, hlo, sharded
from benchmarks.common import run
from jsage.data.device_tables import LANES


def main(chosen: argparse.Namespace) -> list[dict]:
    """A row for each topology, aggregator and dtype."""
    found = []
    for name in chosen.topology:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=name)
        if sharded.wanted(chosen):
            found += sharded.rows(chosen, topology.devices, name)
        else:
            found += ahead.rows(chosen, topology.devices[0], look, {"topology": name})
    return found


def look(text: str, case: ahead.Case) -> dict[str, list[str]]:
    """What the compiled program does to whole tables."""
    return {
        "offenders": hlo.offenders(text, case.table_sizes, case.logits),
        "staged": hlo.staged(text, case.table_sizes),
    }


if __name__ == "__main__":
    options = ahead.options("tpu", __doc__, lanes=LANES)
    options.add_argument("--topology", type=ahead.names, default=("v5e:2x2", "v6e:2x2"), help="v5e:2x2,...")
    options.add_argument("--mesh", action="store_true", help="all chips share one graph, whatever its size")
    options.add_argument("--num-features", type=int, default=256, help="of a mesh (default: 256)")
    options.add_argument(
        "--num-cached", type=ahead.count, default=0, help="rows copied to each chip of a mesh"
    )
    options.add_argument("--seeds", type=int, default=ahead.BATCH, help="of each chip of a mesh (1024)")
    sys.exit(run(options, main))
