"""Models: single-device PyTorch."""
