"""Values and mathematics: adapters, fleets, messages, states; seeds, sizes, algebra, number formats.

It imports no other room, and of libraries only numpy and torch.
"""
