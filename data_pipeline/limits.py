"""What input may take of memory, however small the file that asks for it: one place for every reader."""

MAX_RECORD_BYTES = 1 << 26
"""A longer line of JSON is no record but a file of another kind."""
MAX_DOCUMENT_BYTES = 1 << 26
"""A longer text (in UTF-8) or page is no document."""
MAX_VALUES = 1 << 21
"""Values in a line of JSON: as Python objects they take up to 250 bytes each."""
PIECE_BYTES = 1 << 25
"""About what a reader of lines holds in memory at once; a task reads its pieces one after another."""
BLOCK_BYTES = 1 << 23
"""Read at once."""
MAX_RATIO = 200
"""Of text to the bytes it was made from. JSON lines of text have 3 to 10, logs that repeat themselves up to 100."""
RATIO_FREE_BYTES = 1 << 23
"""What may come out at any ratio."""
