"""What a DeepSeek-V4 model is: its config and the tensors that follow from it."""
