"""Encoders and rerankers are trained here.

Read ``rows.py`` (what is learned from), ``sampling.py`` (which texts make a batch), ``loss.py`` (InfoNCE and its
mask), ``gradient_cache.py`` (batches larger than memory), then ``trainer.py`` (all of it together).
"""
