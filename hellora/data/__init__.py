"""Reading data and dealing it out to clients, and the only door to datasets and flwr_datasets.

It imports core only.
"""
