"""`python -m benchmarks.peers`: the training step beside PyG's; see `benchmarks.peers.compare`."""

import sys

from benchmarks.common import run
from benchmarks.peers.compare import main, options

if __name__ == "__main__":
    sys.exit(run(options(), main))
