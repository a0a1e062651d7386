"""The version stands where every room can see it; pyproject.toml reads it from here."""

__version__ = "0.2.0"
