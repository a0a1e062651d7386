"""The server's side of a round: sample, allocate, dispatch, check answers, aggregate. Values in, values out.

It imports methods, budgets and core.
"""
