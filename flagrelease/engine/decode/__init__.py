"""Decoding: one token a row and step, with nothing left to the host but the order to go on."""
