"""Many texts to a tokenizer's ids, fast: `FastEncoder`."""

from open_lm.fast_tokenizer.encoder import Difference, Documents, FastEncoder

__all__ = ["Difference", "Documents", "FastEncoder"]
