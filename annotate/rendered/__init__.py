"""The simulator: a textured scene, a camera that walks through it, exact depth. It knows nothing of clips."""
