"""A checkpoint in a repository of a hub, read by ranges: nothing is downloaded to a disk."""
