"""Sending a publication to a hub, and reading one back: one client a hub, over the package that the hub publishes."""
