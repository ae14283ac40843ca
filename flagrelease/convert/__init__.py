"""Recipe and source checkpoint in, releases out. `planning` decides every byte, `running` writes, `codecs` decodes."""
