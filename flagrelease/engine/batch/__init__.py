"""Many sequences on one model at once: the model and its caches on all ranks, and the scheduler."""
