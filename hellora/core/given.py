"""What was given to hellora as an object in memory has a name, too: this, and its fingerprint."""

GIVEN = "object:"
