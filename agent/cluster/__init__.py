"""Training on several processes and machines: roles as actors, on Ray or in threads."""
