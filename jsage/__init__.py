"""GraphSAGE in pure JAX: neighbour sampling inside the jitted step, an epoch as one XLA program."""

from jsage import aggregate as aggregate
from jsage import batch as batch
from jsage import block as block
from jsage import data as data
from jsage import draw as draw
from jsage import graph as graph
from jsage import infer as infer
from jsage import loss as loss
from jsage import metrics as metrics
from jsage import nn as nn
from jsage import sample as sample
from jsage import train as train
from jsage.batch import batches as batches
from jsage.batch import epoch as epoch
from jsage.block import Indexed as Indexed
from jsage.block import Segments as Segments
from jsage.block import Tree as Tree
from jsage.block import as_segments as as_segments
from jsage.block import as_tree as as_tree
from jsage.block import edge_list as edge_list
from jsage.data import Dataset as Dataset
from jsage.graph import Graph as Graph
from jsage.graph import from_edges as from_edges
from jsage.infer import embed_all as embed_all
from jsage.infer import embed_to_file as embed_to_file
from jsage.nn import LSTM as LSTM
from jsage.nn import GraphSAGE as GraphSAGE
from jsage.nn import Pool as Pool
from jsage.nn import SAGEConv as SAGEConv
from jsage.sample import full_block as full_block
from jsage.sample import sample_blocks as sample_blocks
from jsage.sample import sample_neighbors as sample_neighbors
from jsage.train import TrainState as TrainState
from jsage.train import init_state as init_state
from jsage.train import make_update as make_update
from jsage.train import train_epoch as train_epoch

__version__ = "0.1.0"
