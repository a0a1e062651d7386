"""The one resident model of a process, lent to clients; the only door to transformers, and to PEFT's files.

It imports core.
"""
