"""What was trained, and what is asked: model, data, loss, measurement."""
