"""What all rooms share; knows no graph, not public."""
