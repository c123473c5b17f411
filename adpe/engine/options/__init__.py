"""Options of the command line and variables of configs: their text, where they go, and what they change."""
