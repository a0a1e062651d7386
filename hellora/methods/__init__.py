"""Strategies, one published idea a file, and what they are made of. What strategy authors import is here and in core.

It imports core and budgets.
"""
