"""Scores with their error, p-values, exact reasons, and the one artifact that holds them together."""
