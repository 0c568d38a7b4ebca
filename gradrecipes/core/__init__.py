"""What everything else speaks about: traces, findings, prescriptions, theory. numpy only."""
