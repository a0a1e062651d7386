"""Server optimizers make a step of the aggregated delta. One file per published idea, named as in the registry."""
