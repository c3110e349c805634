"""Where processes come from, and the one command."""
