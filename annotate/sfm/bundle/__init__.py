"""Bundle adjustment with a focal length per frame."""
