"""Bytes of one kind of input file -> documents, a kind a module; data_pipeline/read.py chooses."""
