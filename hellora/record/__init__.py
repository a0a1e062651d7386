"""A run's folder on disk: its lines, its checkpoints, written so that a kill leaves them whole.

It imports experiments and the rooms below.
"""
