"""A run's folder on disk: its lines and checkpoints, written so that a kill leaves them whole.

It imports experiments, backends, server and core.
"""
