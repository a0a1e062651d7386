"""Runs for whoever works in Python: begun with objects, followed round by round, looked at as tables and plots.

It imports reporting, runs, results, record, experiments, data, model and core.
"""
