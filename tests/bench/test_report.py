"""The HTML report: sound, whole, safe with the words of strangers, and the same bytes each time."""

import base64
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.results import HOSTILE, Reader, made, saved

from avalanche_contrastive.bench import results
from avalanche_contrastive.bench.report import comparisons, html, pages, plots, tables

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def page(everything):
    return html.report_page(everything)


@pytest.fixture(scope="module")
def reader(page):
    return Reader(page)


def test_the_report_is_sound_html(page, reader):
    assert page.startswith("<!DOCTYPE html>\n<html lang=")
    assert not reader.problems
    assert not reader.open
    ids = [attrs["id"] for _, attrs in reader.seen if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [attrs["href"] for tag, attrs in reader.seen if tag == "a"]
    assert len(links) > 10
    assert {link.removeprefix("#") for link in links} <= set(ids)


def test_names_that_differ_in_signs_only_have_anchors_of_their_own(tmp_path):
    suites = ["a b", "a-b", "A_B", "columns", "published"]
    saved(tmp_path, *(made("x", 0, suite=suite) for suite in suites))
    ids = [attrs["id"] for _, attrs in Reader(html.report_page(results.load_all(tmp_path))).seen if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_what_is_referred_to_inside_a_drawing_is_in_it(reader, page):
    ids = {attrs["id"] for _, attrs in reader.seen if "id" in attrs}
    referred = re.findall(r"url\(#([^)]+)\)", page) + re.findall(r'xlink:href="#([^"]+)"', page)
    assert len(referred) > 20
    assert set(referred) <= ids


def test_the_report_needs_nothing_from_elsewhere(reader, page):
    for tag, attrs in reader.seen:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for key in ("src", "href", "srcset", "data", "action", "xlink:href"):
            assert attrs.get(key, "#").startswith(("#", "data:image/png;base64,")), (tag, attrs)
    assert set(re.findall(r"url\((.)", page)) == {"#"}
    assert "@import" not in page


def test_only_our_own_script_may_run(reader, page):
    assert sum(tag == "script" for tag, _ in reader.seen) == 1
    script = page.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(attrs["content"] for tag, attrs in reader.seen if tag == "meta" and "http-equiv" in attrs)
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_the_report_holds_every_number_of_every_table(reader, everything):
    words = set(reader.words)
    for grouped in everything.values():
        shown = [tables.main_table(grouped), tables.cost_table(grouped), tables.ablation_table(grouped)]
        for table in [*shown, comparisons.comparison_table(grouped)]:
            assert {cell for row in table.rows for cell in row} <= words


def test_a_hostile_label_is_only_words(reader, page):
    assert HOSTILE in "".join(reader.words)
    assert page.count("<script") == 1
    assert page.count("alert(") == page.count("&lt;script&gt;alert(&#34;x&#34;)") + page.count(
        '&lt;script&gt;alert("x")'
    )


def test_the_report_shows_configs_figures_and_provenance(reader):
    words = "".join(reader.words)
    shown = len(plots.FIGURES) - 1  # neither suite has measured compatible representations
    assert sum(tag == "svg" for tag, _ in reader.seen) == 2 * shown
    assert all(attrs["aria-label"] and attrs["role"] == "img" for tag, attrs in reader.seen if tag == "svg")
    assert 'method = "co2l"\nsuite = "mine"' in words
    assert "lr = 0.5\n" in words
    assert "0123456789ab" in words
    assert "python 3.11.7, torch 2.15.0" in words


def test_each_table_has_a_caption_and_is_reached_by_keyboard(reader):
    kinds = [tag for tag, _ in reader.seen]
    assert kinds.count("table") == kinds.count("caption") > 10
    boxes = [attrs for tag, attrs in reader.seen if attrs.get("class") == "scroll"]
    assert len(boxes) == kinds.count("table") + kinds.count("svg")
    assert all(box["tabindex"] == "0" and box["role"] == "region" for box in boxes)


def test_settings_configs_and_runs_are_folded(reader):
    folded = [attrs["id"] for tag, attrs in reader.seen if tag == "details" and "id" in attrs]
    of_mine = ["settings", "settings-that-follow-another-row", "streams", "configs", "runs"]
    assert [name.split("-", 2)[2] for name in folded if "-mine-" in name] == of_mine
    assert [name.split("-", 2)[2] for name in folded if "-twenty-" in name] == ["settings", *of_mine[2:]]
    assert not any("open" in attrs for _, attrs in reader.seen)


def test_the_best_of_a_column_is_marked(everything, page):
    table = tables.main_table(everything["mine"])
    i, j = min(table.best)
    assert f"<strong>{table.rows[i][j]}</strong>" in page


def test_the_same_results_give_the_same_bytes(root, page, tmp_path):
    """In another process too, whose sets are in another order."""
    code = (
        "import sys; from pathlib import Path; from avalanche_contrastive.bench import results\n"
        "from avalanche_contrastive.bench.report import html, pages\n"
        f"everything = results.load_all(Path({str(root)!r}))\n"
        f"html.write_report(everything, Path({str(tmp_path / 'report.html')!r}))\n"
        "sys.stdout.buffer.write(pages.results_page(everything).encode())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page
    assert told.stdout.decode() == pages.results_page(results.load_all(root))


def test_the_classes_of_each_experience_are_named_seed_by_seed(tmp_path):
    known = {"class_names": ["cat", "dog", "eel"], "experience_classes": [[1, 0], [2], [7]]}
    saved(tmp_path, made("a", 0) | known, made("a", 1, angles=[12.4, 90.0, 179.6]), made("b", 2))
    table = html.streams_table(results.load_all(tmp_path)["mine"])
    assert table.rows == (("0", "dog, cat", "eel", "7"), ("1", "12°", "90°", "180°"))
    saved(tmp_path / "none", made("b", 2))
    assert not html.streams_table(results.load_all(tmp_path / "none")["mine"])
    assert not Reader(html.report_page(results.load_all(tmp_path / "none"))).problems


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("class_names", "cat"),
        ("class_names", [1, 2]),
        ("experience_classes", [1, 2]),
        ("experience_classes", [["cat"]]),
        ("angles", ["steep"]),
    ],
)
def test_streams_that_are_not_described_as_runs_do_are_refused(key, value, tmp_path):
    saved(tmp_path, made("a", 0) | {key: value})
    with pytest.raises(ValueError, match=f"a-seed0.json: {key} must be a list of"):
        results.load_all(tmp_path)
