"""Recipes of public benchmarks, and the run that scores them: `theodolite benchmark`."""
