"""Files that hold one data set."""
