"""Recipes of trainings, each beside a `smoke` sibling that finishes on a laptop."""
