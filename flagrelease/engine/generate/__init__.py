"""Text and log-probabilities at the terminal: prompts, chats, files."""
