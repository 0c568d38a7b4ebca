"""Recovery from a diverged training: healthy snapshots, when to return to one, and how a killed run resumes."""
