"""`convert --disk`: files are made in passes that fit a budget, handed over, and deleted."""
