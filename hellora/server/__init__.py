"""The server's side of a round: sample, allocate, dispatch, guard, aggregate. Pure: values in, values out.

It imports methods and the rooms below.
"""
