"""Frame-wise gated DeltaNet: `reference` is the definition, `op` the operator, `launch` its fast path."""
