"""Weights and run states to and from files: `weights` (epoch_N.pt, OpenLM's keys), `run_state` (step_<n> folders), `load`.

No file from outside is unpickled: tensors and plain values only.
"""
