"""Adapters that leave hellora: exports with their model cards, and predictions with them.

It imports record, experiments, client, tasks, data, model, methods and core.
"""
