"""How a training went, and what the variations of its trial show."""
