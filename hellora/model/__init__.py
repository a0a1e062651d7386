"""The one resident model of a process, and the only door to transformers and peft.

It imports core only.
"""
