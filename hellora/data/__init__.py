"""Reading data and dealing it out to clients; the only door to datasets and flwr_datasets.

It imports core.
"""
