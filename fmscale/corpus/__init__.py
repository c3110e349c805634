"""Tokens on disk, and which of them stand in which row."""
