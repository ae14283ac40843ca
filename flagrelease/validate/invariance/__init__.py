"""Does the server answer the same request in the same way, whatever else it does?

The same greedy requests are sent alone, again, streamed, several at once, and to servers of the same release that were
started otherwise (`--variant`). Texts and log-probabilities are compared. A server that is wrong in one circumstance
alone is found without any native side: it disagrees with itself.
"""
