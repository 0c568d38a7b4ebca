"""What mean-field theory and stability analysis predict, in numpy."""
