"""The forward pass of DeepSeek-V4.1 for text."""
