"""How a policy acts and what it reads back: one file a protocol."""
