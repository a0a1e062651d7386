"""From a TOML file to checked objects to a prepared run; the presets.

It imports everything below it.
"""
