"""The command line: the commands, their arguments, their help, and how they end.

It imports every room below.
"""
