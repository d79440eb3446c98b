"""Depthwise temporal convolution of the keys: `reference` is the definition, `op` the operator."""
