"""What a vision-language model says of a clip: captions without words of the camera, and numbers for filters."""
