"""Floor 4: the worlds on the other side of the seam. Each drives the same client work."""
