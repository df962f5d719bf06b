"""Reinforcement on TRL: rollouts in, optimizer steps out. TRL owns the steps; this package feeds it."""
