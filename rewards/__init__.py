"""What a trajectory is worth: outcome, format, retrieval and costs, combined by a scorer."""
