"""The chips that DeepSeek-V4 is released for: a chip is data."""
