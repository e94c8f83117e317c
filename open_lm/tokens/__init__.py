"""Text to shards: inputs and units, documents, ids, packed sequences, a global shuffle, tar shards with manifest and statistics.

`preprocess` is the table of contents; pure arithmetic is in `pack`, `shuffle` and `inputs.plan_units`. The corpus and the tokenizer
of the quick start are made in `corpus` and `bpe`.
"""
