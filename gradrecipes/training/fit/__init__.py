"""Callbacks join one fit: the session, the prepared step, the trace writer."""
