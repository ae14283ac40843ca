"""What is asked: the typed bodies of requests, the prompts they make, and refusals."""
