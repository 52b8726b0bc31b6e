"""Densities: the bounds every score is a reduction of, and the models whose terms they reduce."""
