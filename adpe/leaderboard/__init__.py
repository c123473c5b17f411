"""Records, statistics, tables and pages."""
