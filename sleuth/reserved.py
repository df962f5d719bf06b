"""Strings that a tokenizer never splits."""


def is_markup(reserved: str) -> bool:
    """Whether a string of the added vocabulary is not a plain word, that is, not only letters, digits and spaces."""
    return len(reserved) >= 2 and not all(c.isalnum() or c.isspace() for c in reserved)
