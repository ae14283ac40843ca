"""The second implementation: is a release what its manifest and its source say? Shares no code with convert."""
