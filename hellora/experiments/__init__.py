"""From a TOML file to checked objects to a prepared run; presets, and what a budget allows.

It imports costing, backends, client, tasks, data, model, server, methods, budgets and core.
"""
