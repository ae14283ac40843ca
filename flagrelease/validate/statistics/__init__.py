"""Decides whether the port is worse than the native model by more than the margin. No models or files, only numpy."""
