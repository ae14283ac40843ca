"""Where a checkpoint comes from, and what it holds."""
