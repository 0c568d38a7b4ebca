"""The steps of a trial run again with one thing changed, or with standard settings."""
