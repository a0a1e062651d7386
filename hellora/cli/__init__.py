"""The command line.

It imports every room.
"""
