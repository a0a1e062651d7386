"""The client's side of a round: steps of training, where rules may change them, and what an adapter makes of examples.

It imports tasks, data, model, methods and core.
"""
