"""Strategies, one published idea a file, and what they are made of.

Who writes a strategy imports this room and core, no other.

It imports budgets and core.
"""
