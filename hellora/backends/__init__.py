"""The seam between server and clients: the in-process loop, worker processes, Flower, the wire format.

It imports client, server, methods and core.
"""
