"""The loop in which an agent and its retriever teach each other."""
