"""The choice of an algorithm for each map: predicted or measured times, and their explanation."""
