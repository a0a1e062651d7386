"""Each file here is one way to cut the training data into clients."""
