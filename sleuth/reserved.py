"""Strings that a tokenizer never splits, and those among them that are a protocol's own."""

TAGS = ("think", "search", "answer", "information")
"""Names of the tag protocol's tags."""
CALL_TAGS = ("tool_call", "tool_response")
"""What the Hermes form adds to a thought and an answer."""
ALL_TAGS = (*TAGS, *CALL_TAGS, "open")
"""Of every protocol: none of them may stand in outside text, whichever is in use."""
TAG_STRINGS = tuple(f"<{slash}{name}>" for name in ALL_TAGS for slash in ("", "/"))
"""The tags themselves. A tokenizer may have them as special tokens; they are text of the protocol all the same."""


def is_markup(reserved: str) -> bool:
    """Whether a string of the added vocabulary is not a plain word, that is, not only letters, digits and spaces."""
    return len(reserved) >= 2 and not all(c.isalnum() or c.isspace() for c in reserved)
