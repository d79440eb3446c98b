"""Frame-wise Gated DeltaNet and its companions; every fast path has a plain torch twin."""
