"""Published recipes, one short file each; their prompts are in ``workflows/synthesis/prompts``."""
