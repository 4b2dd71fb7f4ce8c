"""Early verdicts on runners that have fallen silent, and what probes from outside look at."""
