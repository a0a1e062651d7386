"""The client's side of a round: local training, and what an adapter makes of examples.

It imports tasks, model, methods and core.
"""
