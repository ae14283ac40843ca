"""Recipe and source checkpoint in, releases out: formats, layouts, plan, streaming run."""
