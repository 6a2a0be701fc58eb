"""Arrays in, arrays out, no state: one definition for numpy and torch, for requests and for tokens.

Scores give a Selection: topk, threshold, nucleus, sample. Scores or load give prices: sinkhorn, dual.
`choices` places one arrival among live queues.
"""
