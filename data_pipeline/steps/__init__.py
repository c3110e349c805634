"""What a recipe can do to documents, one file a step; `data_pipeline/registry.py` has their names."""
