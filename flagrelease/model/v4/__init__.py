"""DeepSeek-V4: its config, the tensors that follow from it, its chat encoding."""
