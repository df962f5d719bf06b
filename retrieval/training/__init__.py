"""Encoders and rerankers are trained here.

Read ``rows.py`` (what is learned from), ``sampling.py`` (which texts make a batch), ``loss.py`` (InfoNCE and its
mask), ``gradient_cache.py`` (batches larger than memory), ``objective.py`` (a step), then ``trainer.py`` (all of it
together). What an encoder gives and how it is scored is its family's affair: ``retrieval/encoders/family.py``.
"""
