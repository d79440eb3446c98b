"""The camera-controlled world model, its samplers and pipelines."""
