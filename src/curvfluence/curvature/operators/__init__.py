"""Small symmetric operators that a curvature is made of, and how each is inverted."""
