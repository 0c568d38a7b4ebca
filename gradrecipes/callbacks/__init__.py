"""Callbacks for `model.fit`: they join one attachment and speak through one Trace."""
