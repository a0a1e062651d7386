"""Comparisons: many runs, tuned alike, and a table with intervals.

It imports runs and the rooms below.
"""
