"""Reading data and dealing it out to clients; the only door to datasets and flwr_datasets.

What a file is, its name says: `file_names`, `layout` (of tables and of images), `declared` (by a README.md). `tables`
and `images` read, `loading` makes splits of it, `reader` the columns that a task reads, `sources` what a run needs.

It imports core.
"""
