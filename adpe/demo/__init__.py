"""The demonstration of the whole chain on small data."""
