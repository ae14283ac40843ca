"""Does a release hold what it says? Shares no code with convert."""
