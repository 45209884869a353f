"""One hop in some layout, and how it reduces."""

from jsage.blocks import aggregate as aggregate
from jsage.blocks.block import Indexed as Indexed
from jsage.blocks.block import Segments as Segments
from jsage.blocks.block import Tree as Tree
from jsage.blocks.block import as_segments as as_segments
from jsage.blocks.block import as_tree as as_tree
from jsage.blocks.block import edge_list as edge_list
from jsage.blocks.chunked import by_chunk as by_chunk
from jsage.blocks.edges import Attention as Attention
from jsage.blocks.edges import attention_weights as attention_weights
from jsage.blocks.edges import edge_mean as edge_mean
from jsage.blocks.edges import edge_rows as edge_rows
from jsage.blocks.edges import with_edge_data as with_edge_data
from jsage.blocks.full import SlicedBlock as SlicedBlock
from jsage.blocks.full import sliced_full_block as sliced_full_block
from jsage.blocks.layout import Block as Block
from jsage.blocks.own_rows import OwnRows as OwnRows
from jsage.blocks.reductions import MAX as MAX
from jsage.blocks.reductions import SOFTMAX_SUM as SOFTMAX_SUM
from jsage.blocks.reductions import SUM as SUM
from jsage.blocks.reductions import Reduction as Reduction
from jsage.blocks.reductions import weighted_source as weighted_source
from jsage.blocks.typed import TypedBlock as TypedBlock
from jsage.blocks.typed import TypedEdges as TypedEdges
from jsage.blocks.typed import TypedTree as TypedTree
