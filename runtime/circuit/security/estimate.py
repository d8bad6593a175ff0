#!/usr/bin/env python3
"""Security of every dimension that thex may emit: makes and checks `table.csv`. Python 3 alone, no packages.

    python3 estimate.py check            # against values that the lattice estimator publishes
    python3 estimate.py table > table.csv

What it is: our own, small form of two attacks of the lattice estimator (Albrecht, Player, Scott, "On the concrete hardness of
Learning with Errors", J. Math. Cryptol. 2015; github.com/malb/lattice-estimator), which needs Sage and so is not run here:

* usvp: primal attack by BKZ-beta on the embedding lattice, with the condition of Alkim et al. (USENIX 2016) in the form of the
  estimator's `cost_gsa`, under the geometric series assumption;
* dual: dual hybrid attack with exhaustive search of zeta secrets (Espitau, Joux, Kharchenko, INDOCRYPT 2020), many short vectors
  from one sieve.

Two cost models: BDGL16 (what tfhe's own check, `ci/lattice_estimator.sage`, takes) and MATZOV (the estimator's default). `bits` of
the table is the least of the four. Not covered: BKW, Groebner bases, hybrid attacks with a decoder (`bdd_hybrid`), quantum attacks.
`check` compares with the estimator's published figures and fails if one is off by more than half a bit.

Secrets are uniform binary, errors Gaussian, q = 2^64, samples unlimited (an attacker has as many as he likes from the keys).
"""

import sys
from math import ceil, e, exp, floor, inf, log, log2, pi, sqrt

VERSION = "thex-estimate 1"
Q_LOG2 = 64.0
TARGET = 128.0
SMALL = range(600, 1025)
BIG = (1536, 2048, 3072, 4096, 6144, 8192)


def curve_log2(dimension):
    """log2 of the standard deviation (torus) of tfhe 1.8's minimal_lwe_variance_for_132_bits_security_gaussian."""
    floor_term = 2.0 ** (4.0 - 2.88539008177793 * log(2.0**64))
    return 0.5 * log2(floor_term + 2.0 ** (5.31469187675068 - 0.0497829131652661 * dimension))


def log_delta(beta):
    """Natural logarithm of the root-Hermite factor (Chen 2013); beta >= 40."""
    return log(beta / (2 * pi * e) * (pi * beta) ** (1 / beta)) / (2 * (beta - 1))


def add(x, y):
    """log2(2^x + 2^y)."""
    hi, lo = max(x, y), min(x, y)
    return hi if hi == inf or lo == -inf else hi + log2(1 + 2.0 ** (lo - hi))


class Bdgl16:
    """Becker, Ducas, Gama, Laarhoven (SODA 2016)."""

    name = "BDGL16"

    @staticmethod
    def bkz(beta, d):
        slope = 0.387 if beta <= 90 else 0.292
        return add(3 * log2(d), slope * beta + 16.4 + (log2(8 * d) if beta < d else 0.0))

    @classmethod
    def sieve_dim(cls, beta, d):
        return beta

    @classmethod
    def many(cls, beta, d):
        return cls.bkz(beta, d)


class Matzov:
    """MATZOV 2022 on the figures of Albrecht et al. (ASIACRYPT 2020), the estimator's default."""

    name = "MATZOV"
    A, B, C = 0.29613500308205365, 20.387885985467914, 5.46

    @staticmethod
    def free(beta):
        return max(beta * log(4 / 3) / log(beta / (2 * pi * e)), 0.0)

    @classmethod
    def bkz(cls, beta, d):
        gates = log2(cls.C) + cls.A * (beta - cls.free(beta)) + cls.B
        return add(3 * log2(d), log2(cls.C * max(d - beta, 1)) + gates)

    @classmethod
    def sieve_dim(cls, beta, d):
        inner = beta - floor(cls.free(beta))
        return inner if beta >= d else min(d, floor(inner + log2((d - beta) * cls.C) / cls.A))

    @classmethod
    def many(cls, beta, d):
        sieve = log2(cls.C) + cls.A * cls.sieve_dim(beta, d) + cls.B
        return add(cls.bkz(beta, d), sieve)


class CoreSvp(Bdgl16):
    """One sieve alone (ADPS16), for comparison with the estimator's `rough`."""

    name = "ADPS16"

    @staticmethod
    def bkz(beta, d):
        return 0.292 * beta


def usvp(n, log_q, sd_secret, sd_error, model, samples=inf):
    """(log2 of the cost, beta, d) of the primal attack. `log_q` natural; `sd_error` in units of q/q, that is integers."""
    log_xi = max(0.0, log(sd_error / sd_secret))

    def dimension(beta):
        """The least d that succeeds at this beta, or None."""
        delta = log_delta(beta)
        most = min(2 * ceil(sqrt(n * log_q / delta)), samples)
        lhs = 0.5 * log(sd_error**2 * (beta - 1) + sd_error**2)

        def fits(d):
            rhs = delta * (2 * beta - d - 1) + (log(sd_error) + log_xi * n + log_q * (d - n - 1)) / d
            return lhs <= rhs

        # rhs is unimodal in d; its top is where delta·d² = log(q)(n+1) - log(sd) - n·log(xi).
        top = sqrt(max(1.0, (log_q * (n + 1) - log(sd_error) - log_xi * n) / delta))
        top = int(min(max(top, n + 2), n + most))
        if not fits(top):
            return None
        lo, hi = min(n + 1, top), top
        while lo < hi:
            mid = (lo + hi) // 2
            lo, hi = (lo, mid) if fits(mid) else (mid + 1, hi)
        return max(hi, beta + 1)

    lo, hi = 41, 4 * n
    while lo < hi:
        mid = (lo + hi) // 2
        lo, hi = (lo, mid) if dimension(mid) else (mid + 1, hi)
    best = min(((model.bkz(b, dimension(b)), b, dimension(b)) for b in range(lo, lo + 12)), key=lambda x: x[0])
    return best


def dual(n, log_q, sd_secret, sd_error, model, zeta, beta, success=0.99, support=2.0):
    """log2 of the cost of the dual hybrid attack at one (zeta, beta); secrets have `support` values each."""
    delta = log_delta(beta)
    rest = n - zeta
    log_c = log(sd_secret / sd_error) + log_q
    m = max(1, ceil(sqrt(rest * log_c / delta)) - rest)
    d = m + rest
    sieve = model.sieve_dim(beta, 2 * beta)
    log_rho = 0.5 * log(4 / 3) + (sieve - 1) * (log_delta(sieve) - delta)
    log_sigma = log_rho + log(sd_secret) + delta * d - log_c * m / d
    if log_sigma > 2.0:
        return inf
    exponent = 4 * pi * pi * exp(2 * log_sigma)
    probability = sqrt(success)
    if zeta == 0:
        # Distinguishing alone.
        vectors = log2(e) * exponent + log2(log(1 / (1 - success)) * 2)
        search = vectors
    else:
        size = zeta * log2(support)
        vectors = log2(8 * (size * log(2) - log(log(1 / probability)))) + log2(e) * exponent
        search = 1 + size + vectors
    sieve = model.sieve_dim(beta, d)
    batches = ceil(2.0 ** min(vectors - 0.2075 * sieve, 1000.0))
    return add(search, log2(batches) + model.many(beta, d))


def minimum(f, lo, hi, step):
    """Coarse steps, then fine ones: (value, argument) of the least f on lo..hi. f is near convex."""
    best = min((f(x), x) for x in range(lo, hi, step))
    while step > 1:
        step = max(1, step // 4)
        around = range(max(lo, best[1] - 4 * step), min(hi, best[1] + 4 * step + 1), step)
        best = min(best, min((f(x), x) for x in around))
    return best


def dual_hybrid(n, log_q, sd_secret, sd_error, model, beta_guess):
    """(log2 of the cost, zeta, beta)."""
    lo, hi = max(41, int(beta_guess * 0.75)), int(beta_guess * 1.35)

    def at(zeta):
        return minimum(lambda beta: dual(n, log_q, sd_secret, sd_error, model, zeta, beta), lo, hi, 16)

    cost, zeta = minimum(lambda zeta: at(zeta)[0], 0, min(n // 2, 128), 16)
    return cost, zeta, at(zeta)[1]


def row(dimension, sd_log2):
    """One row: dimension, log2 of sigma, four costs, the least."""
    log_q, sd = Q_LOG2 * log(2), 2.0 ** (sd_log2 + Q_LOG2)
    costs = []
    for model in (Bdgl16, Matzov):
        primal, beta, _ = usvp(dimension, log_q, 0.5, sd, model)
        costs += [primal, dual_hybrid(dimension, log_q, 0.5, sd, model, beta)[0]]
    return dimension, sd_log2, costs, min(costs)


def table():
    print(f"# {VERSION}; python3 estimate.py table; binary secret, Gaussian error, q = 2^64; costs in bits, least rounded down")
    print("dimension,sigma_log2,q_log2,bdgl16_usvp,bdgl16_dual,matzov_usvp,matzov_dual,bits")
    for dimension in [*SMALL, *BIG]:
        _, sd_log2, costs, least = row(dimension, curve_log2(dimension))
        figures = ",".join(f"{cost:.1f}" for cost in costs)
        print(f"{dimension},{sd_log2:.4f},64,{figures},{floor(least * 10) / 10:.1f}")
        assert least >= TARGET, f"{dimension}: {least:.1f} bits"


def check():
    """Published figures of the estimator: README and the docstrings of lwe_primal.py, lwe_dual.py, reduction.py."""
    kyber = (512, log(3329), sqrt(1.5), sqrt(1.5))
    binary = (1024, 32 * log(2), 0.5, 3.0)
    primal = usvp(*kyber, Matzov, samples=512)
    hybrid = dual_hybrid(*binary, Matzov, 250)
    pairs = [
        ("BDGL16(500, 1024)", Bdgl16.bkz(500, 1024), 175.4),
        ("Kyber512, usvp, MATZOV", primal[0], 143.8),
        ("Kyber512, usvp, ADPS16", usvp(*kyber, CoreSvp, samples=512)[0], 118.6),
        ("Kyber512, usvp, beta / 10", primal[1] / 10, 40.6),
        ("n = 1024, q = 2^32, binary, sigma 3: dual hybrid, MATZOV", hybrid[0], 103.2),
        ("the same, dual, MATZOV", min(dual(*binary, Matzov, 0, b) for b in range(200, 330)), 107.0),
    ]
    for what, ours, published in pairs:
        print(f"{what}: {ours:.1f}, published {published}")
    print(f"(d {primal[2]}, published 998; zeta {hybrid[1]}, beta {hybrid[2]}, published 42, 250)")
    return all(abs(ours - published) <= 0.5 for _, ours, published in pairs)


if __name__ == "__main__":
    if sys.argv[1:] == ["table"]:
        table()
    elif sys.argv[1:] == ["check"]:
        sys.exit(0 if check() else 1)
    else:
        sys.exit(__doc__)
