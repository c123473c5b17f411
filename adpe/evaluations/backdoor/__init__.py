"""Poisoned training images, and blocking at test time."""
