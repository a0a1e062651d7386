"""Hellora inside other people's frameworks: who trains what, and one adapter of unequal updates.

It imports experiments, backends, model, server, methods, budgets and core.
"""
