"""Episodes as state machines without I/O: grammar, prompts, budgets, questions and demonstration plans."""
