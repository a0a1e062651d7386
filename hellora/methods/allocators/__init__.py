"""Allocators: who trains what. One file per published idea, named as in the registry."""
