"""Raw text to a corpus of token shards."""
