"""Rules of local training change how a client trains. One file per published idea, named as in the registry."""
