"""Presets are the experiment files of the papers, and the quickstart."""

from importlib.resources import files


def presets() -> list[str]:
    """Return the names of the experiment files that come with hellora, sorted."""
    names = (path.name for path in files("hellora.experiments.presets").iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))
