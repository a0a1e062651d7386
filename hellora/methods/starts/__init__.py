"""How a linear head is solved in closed form, from sums of features: one published idea a file."""
