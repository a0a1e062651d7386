"""Runs, and comparisons of them, as pages for a browser.

It reads the files of runs only, so that a report needs no torch.

It imports comparing and core.
"""
