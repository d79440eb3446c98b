"""Clips rendered from 3D Gaussian splats along new paths: scenes, where a camera may go, and pictures."""
