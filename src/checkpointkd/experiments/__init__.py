"""Studies: many runs with a table at the end, one module each."""
