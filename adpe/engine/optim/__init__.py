"""Optimisers and their parameter groups under mmengine."""
