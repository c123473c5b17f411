"""Which patches are hidden, and the methods that are about that choice."""
