"""Retrievers made of other retrievers: several fused into one, or one whose best hits are ranked again."""
