"""Reading from the hubs by their own clients: what there is, with which digests, and bytes of it."""
