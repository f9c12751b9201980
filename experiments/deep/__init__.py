"""The parts of `alpha_svrg`: runs of SGD, SVRG and alpha-SVRG on a deep network."""
