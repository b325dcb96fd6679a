"""Class correlation, and the statistics of claims."""
