"""The forward pass of DeepSeek-V4."""
