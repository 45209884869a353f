"""Data sets on the host: what they hold, where they come from, how they are kept."""

from jsage.data.dataset import Dataset as Dataset
from jsage.data.dataset import has_label as has_label
from jsage.data.dataset import inductive as inductive
from jsage.data.dataset import validate_dataset as validate_dataset
from jsage.data.digits import digits as digits
from jsage.data.directory import open as open
from jsage.data.directory import save as save
from jsage.data.edge_split import split_edges as split_edges
from jsage.data.edge_split import split_edges_by_time as split_edges_by_time
from jsage.data.edgelist import read_edge_list as read_edge_list
from jsage.data.npz import load_npz as load_npz
from jsage.data.split_check import EdgeSplit as EdgeSplit
from jsage.data.split_check import TimeSplit as TimeSplit
from jsage.data.split_check import verify_split as verify_split
from jsage.data.synthetic import power_law_communities as power_law_communities
