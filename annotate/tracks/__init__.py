"""What the images say: points followed from frame to frame, features of keyframes, overlays."""
