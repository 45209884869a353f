"""Flax modules: aggregators with parameters, the layer, the model. The only flax in the library."""

from jsage.nn.activation import relu as relu
from jsage.nn.aggregators import LSTM as LSTM
from jsage.nn.aggregators import Pool as Pool
from jsage.nn.conv import SAGEConv as SAGEConv
from jsage.nn.sage import GraphSAGE as GraphSAGE
from jsage.nn.sage import jump_concat as jump_concat
from jsage.nn.sage import jump_max as jump_max
