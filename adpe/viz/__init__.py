"""Figures of reconstructions and predictions."""
