"""How an answer is marked, by the kind of exam: what it says, whether that is right, or that nobody can tell."""
