"""What every part of Sleuth shares: data types, protocols, errors, settings and run folders.

Nothing in this package imports torch, so that ``--help`` and configuration stay fast.
"""

__version__ = "0.1.0"
