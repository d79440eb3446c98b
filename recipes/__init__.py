"""Strict YAML recipes and the command line."""
