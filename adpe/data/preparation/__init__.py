"""Downloading data sets and laying them out."""
