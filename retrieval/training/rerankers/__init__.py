"""Training of rerankers: ``lists.py`` (what a step reads), ``losses.py``, ``objective.py`` (a step), ``train.py``.

The loop, its checkpoints and its resume are those of encoders: ``retrieval/training/trainer.py``.
"""
