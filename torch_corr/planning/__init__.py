"""Chooses an algorithm for each map by predicted or measured times, and explains the choice."""
