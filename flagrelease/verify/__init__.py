"""The second implementation: is a release what its manifest and its source say? It shares no code with convert."""
