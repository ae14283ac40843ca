"""Inference for DeepSeek-V4: the referee that shows what a release computes."""
