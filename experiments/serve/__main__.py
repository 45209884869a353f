"""Serve a trained GraphSAGE over HTTP: embeddings and predictions of known nodes and of new ones.

    python -m experiments.serve                                     # trains on the digits (20 s), then serves
    python -m experiments.serve --dataset cora.npz --export served    # the same, and keeps what it serves
    python -m experiments.serve --artefact served --port 8080         # no training

    curl --json '{"nodes": [5, 80]}' http://127.0.0.1:8000/predict
    curl --json '{"nodes": [5, 80]}' http://127.0.0.1:8000/embed
    curl --json '{"features": [[0.1, ...]], "src": [7, -1], "dst": [-1, 7]}' http://127.0.0.1:8000/embed_new

New node `i` of a request is called -1 - i among the ends of its edges; `/predict` takes new nodes too.
`GET /openapi.json` describes all of it. Features are raw, as in the data set: the service scales them, and
weighs edges, as training did. After SIGTERM or Ctrl-C it takes no more connections, answers what comes on the
open ones and closes them, then ends with status 0. Needs the extra `serve` (prometheus_client, starlette,
uvicorn).
"""

import sys

from experiments.serve.command import run

if __name__ == "__main__":
    sys.exit(run())
