"""What policies and encoders share of Hugging Face: where models lie, adapters, caches, callbacks of trainers."""
