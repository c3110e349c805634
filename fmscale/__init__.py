"""Corpora, their order, models and training. Imports nothing above it."""
