"""`flagrelease status DIR`: what of an output folder is done, missing, proved and published, for which chip."""
