"""Worked examples: models of the user's own with asvrg.transforms in a chain of optax and with fit.

Each is one file to read from top to bottom and to copy from: `python -m experiments.examples.NAME`.
`comparison` holds what they share and what is of no interest to a reader: flags, draws, the table.
"""
