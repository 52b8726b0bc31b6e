"""Rare parts made to count: latent codes -> density -> weights -> a rebalanced data set."""
