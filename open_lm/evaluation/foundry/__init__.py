"""Tasks on LLM Foundry 0.22's own evaluators, in its own environment (`requirements-foundry.txt`)."""
