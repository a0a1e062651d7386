"""One file per way to cut the training data into clients."""
