"""Presets are the experiment files of the papers, and the quickstart."""

import tomllib
from importlib.resources import files
from itertools import takewhile


def presets() -> list[str]:
    """Return the names of the experiment files that come with hellora, sorted."""
    names = (path.name for path in files("hellora.experiments.presets").iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def preset_summaries() -> dict[str, list[str]]:
    """Return every preset, with the comment lines that open its file."""
    folder = files("hellora.experiments.presets")
    texts = {name: folder.joinpath(f"{name}.toml").read_text().splitlines() for name in presets()}
    return {n: [line.lstrip("# ") for line in takewhile(is_comment, lines)] for n, lines in texts.items()}


def named_by(preset: str, section: str, key: str) -> list[str]:
    """Return what a setting of a preset names, in its file or in those that it is based on; [] for nothing."""
    while preset in presets():
        table = tomllib.loads(files("hellora.experiments.presets").joinpath(f"{preset}.toml").read_text())
        if key in table.get(section, {}):
            value = table[section][key]
            return value if isinstance(value, list) else [value]
        preset = table.get("base", "")
    return []


def is_comment(line: str) -> bool:
    return line.startswith("#")
