"""Flax modules: aggregators with parameters, convolutions, models, decoders. The only flax in the library."""

from jsage.nn.activation import relu as relu
from jsage.nn.aggregators import LSTM as LSTM
from jsage.nn.aggregators import Pool as Pool
from jsage.nn.conv.pinsage import PinSAGEConv as PinSAGEConv
from jsage.nn.conv.sage import SAGEConv as SAGEConv
from jsage.nn.conv.sage import l2_normalize as l2_normalize
from jsage.nn.decoders import MLP as MLP
from jsage.nn.decoders import Bilinear as Bilinear
from jsage.nn.decoders import DistMult as DistMult
from jsage.nn.decoders import cosine as cosine
from jsage.nn.decoders import dot as dot
from jsage.nn.infomax import DeepGraphInfomax as DeepGraphInfomax
from jsage.nn.infomax import shuffle_batch as shuffle_batch
from jsage.nn.infomax import shuffle_patches as shuffle_patches
from jsage.nn.models import GraphSAGE as GraphSAGE
from jsage.nn.models import Skip as Skip
from jsage.nn.models import jump_concat as jump_concat
from jsage.nn.models import jump_max as jump_max
from jsage.nn.norm import BatchNorm as BatchNorm
