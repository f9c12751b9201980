"""What the paper proves, as numbers: Theorems 1 to 4 in float64, and an estimate of L.

Theorem 3 is Theorem 1 with d = 1, and Theorem 4 is Theorem 2 with d = 1. An iteration that updates
B random coordinates of d puts d / B in the place of d. So one argument, `blocks` = d / B, serves
all four: d for Theorems 1 and 2 as they are printed, 1 (all coordinates) for Theorems 3 and 4.

The printed conditions are not quite those that the proofs need. With e = L eta, which is
u0 b / n^alpha for the eta of Theorems 2 and 4, D = d / B, z = Delta^2 / D and
s = 4 e + 6 z e^2:

- Theorems 1 and 3 ask for Gamma_t > 0 alone. That also comes out of 1 - 2 z e^2 < 0, where Lemma 1
  is void and the iterates may circle for ever. And beta may be as small as one likes: (10) keeps
  the term of Young's inequality with beta, and not the one with 1 / beta, c_{t+1} eta / (d beta)
  ||grad f(x_hat_t)||^2, which - eta / (2 d) ||grad f(x_hat_t)||^2 makes up for only if
  c_{t+1} <= beta / 2. Without that (12) and (19) can be false. `holds` asks for all three.
- With the eta, m and beta of Theorems 2 and 4, Gamma_t > 0 for all t if s <= 0.84, and not if
  s >= 1; where m = 1 if and only if s < 1; and c_1 <= beta / 2 follows. Without delay the whole
  range 0 < u0 < 1 is good if n^alpha >= 4.77 b, and its upper end is not if n^alpha <= 4 b.
  m is 0, an inner loop of nothing, where e > D / 6: for Theorem 4 that is before Gamma_t fails.
- (13) and (20) admit a delay, be it 0, only if u0 b < 3 / 28. They then give what is claimed, with
  u0 / 4 < sigma < u0 / 2. But u0 has to shrink with b, b sigma stays below 3 / 56, and the factor
  1 / b in (14) and (21) buys nothing. The condition is sufficient only: it has no n in it, and the
  delays that Theorem 1 bears grow like n^alpha (`tolerated_delay`).
- A delay within an inner loop is at most m - 1, and so s <= 4 e + D / 6. For Theorem 4 that is
  below 0.84 wherever m >= 1: (20) is never needed, whatever the workers do; nor is (13) while
  D <= 5 - 24 e. In Theorem 4 m eta <= 1 / (6 L): even if all updates of an epoch read the snapshot,
  they are together a short step of gradient descent.

(9), and so all of it, takes samples that are drawn from all n: with shards of their own workers'
draws are unbiased only on average over the workers.

Fields and arguments may be arrays; they are broadcast, and so are the results.

Source: Huo and Huang (2016), Asynchronous mini-batch gradient descent with variance reduction for
non-convex optimization.
"""

from __future__ import annotations

from asvrg.theory.bounds import (
    Setting,
    bound,
    c,
    gamma,
    gamma_t,
    holds,
    lemma_1_factor,
    tolerated_delay,
)
from asvrg.theory.choices import (
    Choice,
    admissible_delay,
    admissible_delay_of_step,
    delay_limit,
    inner_steps,
    sigma,
    step_size,
    theorem_setting,
)
from asvrg.theory.smoothness import Smoothness, estimate_smoothness

__all__ = [
    "Choice",
    "Setting",
    "Smoothness",
    "admissible_delay",
    "admissible_delay_of_step",
    "bound",
    "c",
    "delay_limit",
    "estimate_smoothness",
    "gamma",
    "gamma_t",
    "holds",
    "inner_steps",
    "lemma_1_factor",
    "sigma",
    "step_size",
    "theorem_setting",
    "tolerated_delay",
]
