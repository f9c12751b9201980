# The commands of README.md and experiments/README.md by name; PYTHON=... for another environment.
PYTHON ?= .venv/bin/python

.PHONY: figures reproduce test

# Figures 1 to 4 again, from the csv files in experiments/results/ (seconds).
figures:
	$(PYTHON) -m experiments.draw_figures

# Everything from the data on, below runs/reproduce/ (an hour and a half on two cores); goes on where it stopped.
reproduce:
	$(PYTHON) -m experiments.reproduce --out_dir=runs/reproduce

test:
	$(PYTHON) -m pytest -q -n auto
