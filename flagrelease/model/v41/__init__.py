"""DeepSeek-V4.1: its config, the tensors that follow from it, how it is cut."""
