"""Training of encoders and rerankers.

Read ``rows.py`` (training data), ``sampling.py`` (the texts of a batch), ``loss.py`` (InfoNCE and its mask),
``gradient_cache.py`` (batches larger than memory), ``objective.py`` (a step), then ``trainer.py``, which combines
them. The output of an encoder and its scores are defined by its family: ``retrieval/encoders/family.py``.
"""
