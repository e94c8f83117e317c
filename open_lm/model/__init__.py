"""The transformer on one page (`transformer`); attention, norms, rotary, feed-forward and the loss head beside it; `zoo` names sizes.

Knows no parallelism, no data and no files but the model configurations.
"""
