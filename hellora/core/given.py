"""What was given to hellora as an object in memory has a name, too: GIVEN, and its fingerprint."""

GIVEN = "object:"


def in_words(name: str) -> str:
    """Return a name for a person, who cannot know an object by its fingerprint."""
    return "given in Python" if name.startswith(GIVEN) else name
