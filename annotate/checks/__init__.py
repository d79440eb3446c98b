"""What a source gives, against what the images say: depth, poses, lens."""
