"""Experiment files of the papers, and the quickstart."""
