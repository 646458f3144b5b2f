"""Writing shards."""
