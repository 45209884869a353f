"""Flax modules: aggregators with parameters, the layer, the model, decoders. The only flax in the library."""

from jsage.nn.activation import relu as relu
from jsage.nn.aggregators import LSTM as LSTM
from jsage.nn.aggregators import Pool as Pool
from jsage.nn.conv import SAGEConv as SAGEConv
from jsage.nn.heads import MLP as MLP
from jsage.nn.heads import Bilinear as Bilinear
from jsage.nn.heads import DistMult as DistMult
from jsage.nn.heads import cosine as cosine
from jsage.nn.heads import dot as dot
from jsage.nn.infomax import DeepGraphInfomax as DeepGraphInfomax
from jsage.nn.infomax import shuffle_batch as shuffle_batch
from jsage.nn.infomax import shuffle_patches as shuffle_patches
from jsage.nn.norm import BatchNorm as BatchNorm
from jsage.nn.pinsage import PinSAGEConv as PinSAGEConv
from jsage.nn.sage import GraphSAGE as GraphSAGE
from jsage.nn.sage import jump_concat as jump_concat
from jsage.nn.sage import jump_max as jump_max
