"""Shards to batches: the order of a run as arithmetic (`keyed`, `mixing`, `plan`), the shards it reads (`sources`, `counts`),
reading them (`stream`, `rows`), and batches for the training processes (`dataset`, `loader`)."""
