"""Language models that write text to order: training data, verdicts, rewritten queries."""
