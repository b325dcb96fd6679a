"""Experiments: the paper's tables and figures, and our own comparisons, one module each; and the demo."""
