"""GraphSAGE in pure JAX: neighbor sampling inside the jitted step, an epoch as one XLA program."""

from jsage import blocks as blocks
from jsage import data as data
from jsage import graph as graph
from jsage import infer as infer
from jsage import losses as losses
from jsage import metrics as metrics
from jsage import nn as nn
from jsage import parallel as parallel
from jsage import sampling as sampling
from jsage import serving as serving
from jsage import train as train
from jsage import typing as typing
from jsage.blocks import aggregate as aggregate
from jsage.data import Dataset as Dataset
from jsage.graph import Graph as Graph
from jsage.graph import GrowingGraph as GrowingGraph
from jsage.graph import NewNodes as NewNodes
from jsage.graph import from_edges as from_edges
from jsage.infer import embed_all as embed_all
from jsage.infer import embed_new as embed_new
from jsage.infer import embed_to_file as embed_to_file
from jsage.nn import GraphSAGE as GraphSAGE
from jsage.nn import SAGEConv as SAGEConv
from jsage.sampling import batches as batches
from jsage.sampling import epoch as epoch
from jsage.sampling import full_block as full_block
from jsage.sampling import sample_blocks as sample_blocks
from jsage.sampling import sample_neighbors as sample_neighbors
from jsage.train import TrainState as TrainState
from jsage.train import init_state as init_state
from jsage.train import make_update as make_update
from jsage.train import train_epoch as train_epoch

__version__ = "0.1.0"
