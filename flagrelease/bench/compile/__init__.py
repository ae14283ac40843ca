"""`flagrelease bench compile`: every kernel that the engine launches, compiled for chips that are not here."""
