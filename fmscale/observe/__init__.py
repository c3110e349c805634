"""What a run did, written down and shown."""
