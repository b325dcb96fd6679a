"""Training: the loop, one run, one distillation."""
