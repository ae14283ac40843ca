"""One conversion on many machines: `--part I/N`, `--merge`, `--executor ray`."""
