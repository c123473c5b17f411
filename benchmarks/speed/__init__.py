"""Measurements of speed, as ratios."""
