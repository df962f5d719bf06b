"""Strings that a tokenizer keeps whole."""


def is_markup(reserved: str) -> bool:
    """Whether a string of the added vocabulary is more than a word: a word has letters, digits and spaces only."""
    return len(reserved) >= 2 and not all(c.isalnum() or c.isspace() for c in reserved)
