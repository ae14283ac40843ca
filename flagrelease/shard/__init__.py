"""Files of tensors: headers, index, slices, sequential writing. Knows nothing of models, formats or recipes."""
