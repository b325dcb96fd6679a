"""Checkpoints as teachers: ensembles, the logit cache, and the cost of training teachers."""
