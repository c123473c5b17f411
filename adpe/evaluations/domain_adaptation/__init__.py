"""Adaptation to a domain without labels."""
