"""Metrics, unrounded and for every image."""
