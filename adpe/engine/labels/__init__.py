"""What labels mean, the same in training, validation and test data, checkpoints, heads and losses."""
