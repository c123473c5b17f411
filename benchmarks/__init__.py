"""Protocols, the leaderboard with its doubt, pictures and the speed measurements."""
