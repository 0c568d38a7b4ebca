"""What a rule found and what to do about it."""
