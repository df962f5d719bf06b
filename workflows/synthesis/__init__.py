"""Training rows written by a language model: recipes that write, filters that choose, a run that can be resumed."""
