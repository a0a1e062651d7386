"""Aggregators: fold unequal updates into one adapter. One file per published idea, named as in the registry."""
