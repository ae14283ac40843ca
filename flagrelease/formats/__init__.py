"""Stored formats as declarations: dtypes, names, blocks, and how a header is matched with them. No decoder is here."""
