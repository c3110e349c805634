"""Engines, checkpoints, and the loop."""
