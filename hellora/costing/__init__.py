"""What training costs, counted in steps without values.

It imports client, tasks, model, methods, budgets and core.
"""
