"""A run on a GPU that has no network: what it needs is carried there in pieces (docs/gpu.md)."""
