"""Values and mathematics: adapters, fleets, messages, states; seeds, errors, sizes, low-rank algebra, number formats.

It imports no other room, and of libraries only numpy and torch.
"""
