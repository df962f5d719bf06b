"""The made-up world: a closed, seeded set of films, people, companies, cities and countries to search in.

Read ``facts.py`` (entities and relations), ``lexicon.py`` (names and synonyms), ``questions.py`` (the
questions and how a demonstrator answers them), then ``generate.py``, which combines them.
"""
