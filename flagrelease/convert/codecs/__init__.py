"""What bytes mean in each stored format, a file a format, and the one look-up from one format to another."""
