"""Hugging Face code shared by policies and encoders: locating models, adapters, the cache, trainer callbacks."""
