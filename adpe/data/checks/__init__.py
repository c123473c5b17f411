"""Checks of data roots before training."""
