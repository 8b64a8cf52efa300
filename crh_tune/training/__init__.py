"""One trial: the epoch loop, its workers, the shard statistics and the aggregator, checkpoints."""
