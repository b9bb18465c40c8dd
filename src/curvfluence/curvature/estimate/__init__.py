"""Sums over the data that curvatures are estimated by."""
