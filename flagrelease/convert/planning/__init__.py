"""From a checkpoint's headers and the targets to a plan: output files with exact offsets. Reads no weights."""
