"""The theory held against runs: what `theory_report` and `theorems` are made of."""
