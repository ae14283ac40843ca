"""Every operator of the DeepSeek-V4 forward pass: plain torch definitions, Triton kernels, and providers of both."""
