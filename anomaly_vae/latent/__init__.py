"""What codes are good for: rows drawn, restored, filled in, mixed, packed, grouped, moved and mapped."""
