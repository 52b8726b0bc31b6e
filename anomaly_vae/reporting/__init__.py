"""Pictures of results. Result values in, figures out; nothing here computes a score."""
