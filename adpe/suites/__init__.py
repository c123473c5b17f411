"""Suites: declared runs, their expansion and execution."""
