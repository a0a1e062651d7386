"""Floor 5: a run, or several compared, as one page: what happened, to read in a browser without a network."""
