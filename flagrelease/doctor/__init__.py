"""`flagrelease doctor`: what this machine has, what is known to go wrong with it, and what it can do for which chip."""
