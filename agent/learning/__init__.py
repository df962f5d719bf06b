"""Reinforcement learning on TRL, which takes the optimizer steps; this package supplies rollouts and advantages."""
