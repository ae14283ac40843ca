"""Stored formats as declarations: dtypes, names, blocks. No decoder is here."""
