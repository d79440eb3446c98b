"""Output gate of an attention block: `reference` is the definition, `op` the operator."""
