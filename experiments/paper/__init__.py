"""The paper's experiments: the search for steps, Figures 1 to 4, and what makes them."""
