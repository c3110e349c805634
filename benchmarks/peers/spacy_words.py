"""The words that spaCy's English tokenizer finds, as datatrove's rules see them.

`python -m benchmarks.peers.spacy_words` reads JSONL from stdin and writes a JSON list of [start, word] for each
document.
"""

from __future__ import annotations

import json
import sys

import spacy


def main() -> None:
    english = spacy.blank("en")
    for line in sys.stdin:
        text = json.loads(line)["text"]
        with english.memory_zone():
            words = [(word.idx, word.text) for word in english.tokenizer(text) if word.text.strip()]
            print(json.dumps(words))


if __name__ == "__main__":
    main()
