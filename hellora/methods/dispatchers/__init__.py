"""Dispatchers: what of the global adapter a client receives. One file per published idea, named as in the registry."""
