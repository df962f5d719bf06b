"""Rewards of a trajectory: outcome, format, retrieval and costs, combined by a scorer."""
