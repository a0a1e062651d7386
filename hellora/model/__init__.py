"""The one resident model of a process, lent to clients; the only door to transformers and peft.

It imports core.
"""
