"""What was found, for people and programs: plain text, terminal, HTML, JSON."""
