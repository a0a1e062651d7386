"""Comparisons: many runs, tuned alike, their statistics, and a table with intervals.

It imports runs, record, experiments and core.
"""
