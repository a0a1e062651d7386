"""Adapters that leave hellora: exports with their model cards, and predictions with them.

It imports record, experiments and the rooms below.
"""
