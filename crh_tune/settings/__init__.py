"""Typed, validated settings of a trial and of a search, read from and written to YAML."""
