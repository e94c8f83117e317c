"""Conversations to shards with a loss mask: records, templates, spans that count, packing that splits no conversation that fits."""
