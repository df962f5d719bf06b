"""Suites: several sets of questions evaluated as one, with their mean."""
