"""Multi-label recognition on frozen features."""
