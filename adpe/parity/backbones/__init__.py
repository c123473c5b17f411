"""Backbones against the numbers of their references."""
