"""OpenLM: text -> tokens -> tar shards -> FSDP training -> checkpoints -> benchmark scores."""

__version__ = "0.3.0"

__all__ = ["load_model", "__version__"]


def __getattr__(name: str) -> object:
    """Import `load_model` when it is asked for: `import open_lm` alone stays free of torch."""
    if name == "load_model":
        from open_lm.checkpoint.load import load_model

        return load_model
    raise AttributeError(f"module 'open_lm' has no attribute '{name}'")
