"""The ladder, one rung a file, on small operators."""
