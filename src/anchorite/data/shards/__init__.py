"""Datasets larger than memory or one disk: shards, read as a stream for training and as records for all else.

The samples of a split lie in tar files of some hundred megabytes. Opening such a dataset reads one list of shards, and
training reads each shard when its turn comes, so neither time nor memory grows with the number of images.
"""
