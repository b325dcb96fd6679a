"""Checkpoints as teachers: ensembles, the logit cache, what training them cost."""
