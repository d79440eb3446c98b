"""The tracker as torch operations: many points, many pairs of frames and many keyframes at once."""
