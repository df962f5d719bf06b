"""The report: one HTML page of curves, configuration and trajectories that needs no network."""
