"""Comparison with numbers recorded from the references."""
