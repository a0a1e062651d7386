"""Counting what training costs, from steps without values.

It imports client, tasks, model, methods, budgets and core.
"""
