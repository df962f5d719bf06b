"""Corpora of pages: documents as pictures, with their text layers and the places of their letters beside them."""
