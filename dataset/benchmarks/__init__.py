"""Public benchmarks: their truth, their protocols, and what comes of a run."""
