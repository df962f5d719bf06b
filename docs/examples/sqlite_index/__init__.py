"""A kind of retriever: SQLite's full-text search over an index of its own."""
