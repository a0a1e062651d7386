"""Floor 4: where examples come from, and which client holds which of them."""
