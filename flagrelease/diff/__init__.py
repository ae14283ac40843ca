"""`flagrelease diff`: what changed between two releases, by their manifests."""
