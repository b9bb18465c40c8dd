"""The figures of a study, each a function of its results that gives None without them."""
