"""Every model type of transformers' causal LM mapping, tiny and random: ``python -m benchmarks architectures``.

What each is made of, what is checked of it, and the table. ``--only TYPE,…`` tries some, ``--json`` prints all that
was found; otherwise it goes to docs/results/architectures.json.
"""
