"""The seam between server and clients: the in-process loop, worker processes, Flower's grid, and the wire format.

It imports client, methods and core.
"""
