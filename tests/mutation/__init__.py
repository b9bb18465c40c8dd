"""Code that is changed on purpose, one place at a time: whether some test notices."""
