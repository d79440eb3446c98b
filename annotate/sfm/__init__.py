"""From tracks and depth to a camera for every frame."""
