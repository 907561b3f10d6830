"""The command `list`: the rows of a suite, one row whole, or what else there is."""

import argparse

from avalanche_contrastive.bench.config import AVALANCHE, DEFAULT_SUITE, Row, find_row, load_rows, read_toml, suites
from avalanche_contrastive.bench.files import toml
from avalanche_contrastive.bench.options import ORIGINS, commented, keys_described, options_described
from avalanche_contrastive.bench.selection import suite_of


def list_rows(parsed: argparse.Namespace) -> int:
    """Print the rows of the suite, one row whole, or what else there is."""
    if parsed.suites:
        for suite in suites():
            rows = load_rows(suite)
            streams = ", ".join(sorted({row.config.stream for row in rows}))
            print(f"{suite:18} {len(rows):3} rows on {streams}")
    elif parsed.streams:
        from avalanche_contrastive.bench.data.kinds import STREAMS
        from avalanche_contrastive.bench.methods.networks import NETWORKS  # torch takes seconds

        for name, kind in STREAMS.items():
            print(f"stream  {name:20} {kind.title}; {', '.join(kind.scenarios)}-incremental; network {kind.network}")
        for name, network in NETWORKS.items():
            print(f"network {name:20} {network.about}")
    elif parsed.unavailable:
        for name, reason in unavailable().items():
            print(f"{name:22} {reason}")
    elif parsed.row:
        _print_row(find_row(parsed.row, suite_of(parsed)))
    else:
        for row in load_rows(parsed.suite or DEFAULT_SUITE):
            about = f"{row.label}: {row.method.about}" if not row.base else f"{row.label} (from {row.base})"
            print(f"{row.name:28} {row.table:9} {about}")
    return 0


def unavailable() -> dict[str, str]:
    """Avalanche's strategies that no row can name, each with the reason."""
    reasons: dict[str, str] = read_toml(AVALANCHE)["unavailable"]
    return reasons


def _print_row(row: Row) -> None:
    """The whole config, as a TOML file could say it, with a sentence for each key."""
    config = {key: toml(value) for key, value in row.config.as_dict().items() if key != "options"}
    options = {key: toml(value) for key, value in row.config.options.items()}
    print(f"# {row.label}: {row.method.about}\n\n{commented(config, keys_described())}")
    print(f"\n[options]  # {ORIGINS}\n\n{commented(options, options_described(row.method))}".rstrip())
