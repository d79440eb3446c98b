"""Training stages of the world model."""
