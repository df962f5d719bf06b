"""Credit assignment: from a rollout's rewards to advantages. One scheme a file, settings beside it; no torch here."""
