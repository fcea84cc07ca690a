"""The peers' own test suites, run on isostep: `python -m peers`.

Each suite runs twice, once with the framework's own optimizers and once with isostep's put in their
place by a pytest plugin. Only differences count: a test that fails on both sides says nothing about
isostep. Nothing here is part of `make test`.
"""
