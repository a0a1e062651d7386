"""What a row of an allocation costs its client, and what fits into its budget.

It imports core.
"""
