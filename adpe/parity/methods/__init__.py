"""Pretraining methods against the numbers of their references."""
