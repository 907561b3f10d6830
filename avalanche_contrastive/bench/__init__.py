"""The runner: it compares the methods with Avalanche's own strategies, from configs to tables.

``avalanche-contrastive --help`` lists its commands. The rooms: `configs` (a TOML file per row), `data` (streams),
`methods` (strategies by name), `run` (from a config to a JSON file), `report` (from JSON files to tables, figures and
pages). Only `run`, `data` and the builders in `methods` need torch; listing and tables start at once.
"""
