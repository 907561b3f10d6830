"""Whole batches beside Avalanche's sample by sample; `pytest -m slow -s` of this file prints the ratio."""

import statistics

import pytest
from helpers.speed import fetch_comparisons, ratios, summary


@pytest.mark.slow
def test_ratio_of_times_to_sample_by_sample():
    for comparison in fetch_comparisons():
        found = ratios(comparison, rounds=5)
        print(f"\n{comparison.work:55} {comparison.competitor:10} {summary(found)}, wanted {comparison.target}")
        assert statistics.median(found) <= comparison.target
