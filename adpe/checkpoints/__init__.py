"""Reading, renaming, loading and writing checkpoints of any known format."""
