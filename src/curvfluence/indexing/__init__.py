"""Gradients of all examples, projected once: the most influential ones of a new query at once."""
