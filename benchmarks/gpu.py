"""What the training step needs on an H100, from the real GPU compiler and without a GPU: memory, copies.

    pip install jax-cuda12-plugin==$JAX jax-cuda12-pjrt==$JAX nvidia-cuda-nvcc-cu12     # jax's own version
    python -m benchmarks.gpu --json gpu.json

`offenders` should be empty: whole tables that a step writes. `slots` names arrays as large as the input
layer's `[num_dst, fanout, d]`: empty where the gather is part of the aggregation.
"""

import argparse
import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jax.experimental import topologies

from benchmarks import ahead, hlo
from benchmarks.common import run

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 } device_description_str: "NVIDIA H100 80GB HBM3"
"""


def main(chosen: argparse.Namespace) -> list[dict]:
    """A row for each aggregator and dtype."""
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="h100", topology="1x1x1", target_config=H100
    )
    return list(ahead.rows(chosen, topology.devices[0], look, {"topology": "h100"}))


def look(text: str, case: ahead.Case) -> dict[str, list[str]]:
    """Whole tables and whole slots that the compiled program writes."""
    slots = [str(one) for one in hlo.written(text) if one.size >= case.slots]
    return {"offenders": hlo.offenders(text, case.table_sizes, case.logits), "slots": slots}


if __name__ == "__main__":
    options = ahead.options("gpu", __doc__, lanes=1)
    sys.exit(run(options, main))
