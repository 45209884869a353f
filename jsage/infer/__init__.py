"""Exact inference: whole neighbourhoods, one layer at a time over all nodes, on the device or into a file."""

from jsage.infer.parts import Streaming as Streaming
from jsage.infer.record import Progress as Progress
from jsage.infer.stream import embed_to_file as embed_to_file
from jsage.infer.whole import embed_all as embed_all
