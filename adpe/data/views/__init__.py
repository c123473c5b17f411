"""Crops and colour changes of decoded images."""
