"""From a Trace to Findings: one rule a file, a table of codes, an engine that runs and sorts them."""
