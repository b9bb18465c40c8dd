"""What `make torture` does: kills, corruptions, stale and bad inputs, and a soak, all counted."""
