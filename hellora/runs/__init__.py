"""Running an experiment in its folder, with progress on the terminal and trackers.

It imports results, record, experiments, client, model, server and core.
"""
