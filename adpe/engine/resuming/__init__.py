"""Randomness and data order as functions of the position in a run, and resuming from there."""
