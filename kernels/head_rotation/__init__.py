"""RMSNorm and a rotation of halves with a table for every head: `reference` is the definition, `op` the operator."""
