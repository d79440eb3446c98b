"""The heavy stages of the main branch for Hopper GPUs, in Gluon."""
