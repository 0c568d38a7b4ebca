"""What to do, as Keras lines that can be pasted."""
