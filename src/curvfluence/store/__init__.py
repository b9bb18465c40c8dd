"""What is kept on disk, and by what key."""
