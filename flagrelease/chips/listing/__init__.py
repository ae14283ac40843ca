"""`flagrelease chips`: the chip table beside the shipped recipes: which release, on how many cards, started how."""
