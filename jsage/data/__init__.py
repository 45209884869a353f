"""Data sets on the host: what they hold, where they come from, how they are kept."""

from jsage.data.dataset import Dataset as Dataset
from jsage.data.dataset import has_label as has_label
from jsage.data.dataset import inductive as inductive
from jsage.data.dataset import validate_dataset as validate_dataset
from jsage.data.digits import digits as digits
from jsage.data.directory import open as open
from jsage.data.directory import save as save
from jsage.data.edge_files import edge_arrays as edge_arrays
from jsage.data.edge_files import edge_files as edge_files
from jsage.data.edge_split import split_edges as split_edges
from jsage.data.edge_split import split_edges_by_time as split_edges_by_time
from jsage.data.edgelist import read_edge_list as read_edge_list
from jsage.data.external import shard_edges as shard_edges
from jsage.data.npz import load_npz as load_npz
from jsage.data.shard_dataset import shard_dataset as shard_dataset
from jsage.data.shards import Shard as Shard
from jsage.data.shards import Shards as Shards
from jsage.data.shards import open_shard as open_shard
from jsage.data.shards import open_shards as open_shards
from jsage.data.shards import verify_shards as verify_shards
from jsage.data.split_check import EdgeSplit as EdgeSplit
from jsage.data.split_check import TimeSplit as TimeSplit
from jsage.data.split_check import verify_split as verify_split
from jsage.data.synthetic import power_law_communities as power_law_communities
