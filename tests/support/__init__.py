"""Helpers that several test modules share, and scripts that fill tables of the docs or fuzz."""
