"""One graph on many devices: seeds, features and edges split over a mesh, with one device's results."""

from jsage.parallel.capacity import measure_capacities as measure_capacities
from jsage.parallel.exchange import Traffic as Traffic
from jsage.parallel.exchange import ask as ask
from jsage.parallel.exchange import plan as plan
from jsage.parallel.exchange import traffic as traffic
from jsage.parallel.features import ShardedFeatures as ShardedFeatures
from jsage.parallel.features import fetch as fetch
from jsage.parallel.features import hottest as hottest
from jsage.parallel.features import shard_features as shard_features
from jsage.parallel.graph import ShardedGraph as ShardedGraph
from jsage.parallel.graph import pad_shard as pad_shard
from jsage.parallel.graph import shard_graph as shard_graph
from jsage.parallel.infer import Budget as Budget
from jsage.parallel.infer import embed_all as embed_all
from jsage.parallel.mesh import assemble as assemble
from jsage.parallel.mesh import make_mesh as make_mesh
from jsage.parallel.mesh import on_mesh as on_mesh
from jsage.parallel.mesh import replicate as replicate
from jsage.parallel.mesh import specs as specs
from jsage.parallel.mesh import split as split
from jsage.parallel.place import Place as Place
from jsage.parallel.reduce import across as across
from jsage.parallel.reduce import own_key as own_key
from jsage.parallel.sample import sample_blocks as sample_blocks
from jsage.parallel.sample import sample_neighbors as sample_neighbors
