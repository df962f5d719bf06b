"""The made-up world: a closed, seeded set of films, people, companies, cities and countries to search in.

Read ``facts.py`` (who relates to whom), ``lexicon.py`` (names and synonyms), ``questions.py`` (what is
asked and how a demonstrator answers it), then ``generate.py`` (all of it together).
"""
