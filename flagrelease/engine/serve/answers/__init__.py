"""What is answered: events of the sequences as each interface shows them."""
