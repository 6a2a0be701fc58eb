"""Estimates in, a choice out: plain numpy, small frozen classes with `decide(estimates, objective, allowed, rng)`.

greedy takes the best, explore sometimes another, and budget and deadline wrap any of them:
`Budget(BudgetConfig(limit=0.002), inner=Deadline(1.5, inner=Thompson()))`.
"""
