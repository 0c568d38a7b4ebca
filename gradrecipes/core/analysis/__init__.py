"""Statistics of runs, trials and searches."""
