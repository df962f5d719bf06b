"""A retriever over HTTP, in Search-R1's contract: the server and its client."""
