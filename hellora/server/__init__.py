"""The server's side of a round: sample, allocate, dispatch, guard, aggregate. Values in, values out.

It imports methods, budgets and core.
"""
