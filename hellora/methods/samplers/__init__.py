"""Samplers choose who is asked to train. One file per published idea, named as in the registry."""
