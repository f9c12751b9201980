"""A cluster on paper held against runs: what `predict_speedup` is made of."""
