"""Training: the loop and what it is made of. Knows data, checkpoints and the model; evaluation comes in as a callback from `main`."""
