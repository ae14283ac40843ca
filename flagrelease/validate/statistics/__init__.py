"""Is the port worse than the native model by more than the margin? numpy only; knows nothing of models or files."""
