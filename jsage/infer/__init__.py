"""A trained model over many nodes: exact inference, new nodes, nearest rows, variance."""

from jsage.infer.embed_all import embed_all as embed_all
from jsage.infer.nearest import Neighbors as Neighbors
from jsage.infer.nearest import nearest as nearest
from jsage.infer.nearest import nearest_streamed as nearest_streamed
from jsage.infer.nearest import not_these as not_these
from jsage.infer.nearest import save_embeddings as save_embeddings
from jsage.infer.nearest import save_neighbors as save_neighbors
from jsage.infer.new_nodes import apply_blocks as apply_blocks
from jsage.infer.new_nodes import embed_new as embed_new
from jsage.infer.parts import StreamOptions as StreamOptions
from jsage.infer.resumable import Progress as Progress
from jsage.infer.to_file import embed_to_file as embed_to_file
from jsage.infer.variance import Spread as Spread
from jsage.infer.variance import plot_variance as plot_variance
from jsage.infer.variance import variance_report as variance_report
