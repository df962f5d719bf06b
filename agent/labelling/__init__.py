"""What a retriever can learn from rollouts: labels of the passages that an agent's searches found."""
