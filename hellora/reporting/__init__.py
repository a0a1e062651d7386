"""Runs as pages for a browser. It reads files only, so that a report needs no torch.

It imports core, and of record the names of files.
"""
