"""What a model is worth: validation loss, and benchmark tasks with LLM Foundry's semantics."""
