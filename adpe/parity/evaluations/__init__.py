"""Evaluations against the numbers of their references."""
