"""What several tasks have in common; no task is in here, so that the registry lists none."""
