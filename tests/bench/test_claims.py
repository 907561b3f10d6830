"""What the papers claim, held against results."""

import pytest
from helpers.results import made, saved

from avalanche_contrastive.bench import config as configs
from avalanche_contrastive.bench import results
from avalanche_contrastive.bench.report import claims, pages

TOML = """
[papers]
co2l = "Co2L"
csd = "CSD"
[[claim]]
method = "co2l"
claim = "It is better"
source = "Table 1"
figure = "final accuracy"
higher = "ours"
lower = "theirs"
"""


def rows(name, values, **more):
    """A row with these final accuracies, a seed each."""
    return [made(name, seed, **more) | {"final_accuracy": value} for seed, value in enumerate(values)]


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """Lines of the table of some results by the claim above, changed."""

    def table(*found, change=("", "")):
        path = tmp_path / "claims.toml"
        path.write_text(TOML.replace(*change))
        monkeypatch.setattr(claims, "CLAIMS", path)
        saved(tmp_path / "out", *(result for of_row in found for result in of_row))
        return claims.claims_table(results.load_all(tmp_path / "out"))

    return table


@pytest.mark.parametrize(
    ("ours", "theirs", "shown", "verdict"),
    [
        # t(0.975, 2) = 4.303, so the half width is 2.484 standard deviations.
        ([0.50, 0.51, 0.52], [0.40, 0.40, 0.40], ("+11.0", "[+8.5, +13.5]", "3"), "holds"),
        ([0.40, 0.40, 0.40], [0.50, 0.51, 0.52], ("-11.0", "[-13.5, -8.5]", "3"), "reversed"),
        ([0.50, 0.60, 0.70], [0.40, 0.40, 0.40], ("+20.0", "[-4.8, +44.8]", "3"), "not shown"),
        ([0.5], [0.4], ("+10.0", "–", "1"), "not shown"),
        ([0.5, 0.5], [0.5, 0.5], ("+0.0", "[+0.0, +0.0]", "2"), "not shown"),
        ([0.5, float("nan")], [0.5, 0.5], ("–", "–", "0"), "not shown"),
    ],
)
def test_the_interval_of_the_difference_decides(judged, ours, theirs, shown, verdict):
    table = judged(rows("ours", ours), rows("theirs", theirs))
    assert table.rows == (("Co2L: It is better", verdict, *shown, "mine", "–", "ours > theirs", "Table 1"),)
    assert f"1 {verdict}" in table.caption


def test_a_claim_without_its_rows_has_no_line(judged):
    assert not judged(rows("ours", [0.5]), rows("others", [0.4]))


def test_rows_are_compared_at_each_size_of_memory(judged):
    table = judged(
        *(rows(f"ours{end}", [0.5, 0.5], memory=size) for end, size in (("", 50), ("_200", 200), ("_paper", 500))),
        *(rows(f"theirs{end}", [0.4, 0.4], memory=size) for end, size in (("", 50), ("_200", 200), ("_500", 500))),
    )
    assert [line[6] for line in table.rows] == ["50", "200"]


def test_a_row_without_a_memory_is_compared_at_every_size(judged):
    table = judged(
        rows("ours", [0.5, 0.5], memory=50),
        rows("ours_200", [0.6, 0.6], memory=200),
        rows("theirs", [0.4, 0.4]),
    )
    assert [(line[6], line[2]) for line in table.rows] == [("50", "+10.0"), ("200", "+20.0")]


def test_each_of_several_rows_is_checked(judged):
    table = judged(
        rows("ours", [0.5, 0.5]),
        rows("theirs", [0.4, 0.4]),
        rows("third", [0.6, 0.6]),
        change=('lower = "theirs"', 'lower = ["theirs", "third"]'),
    )
    assert [(line[7], line[1]) for line in table.rows] == [("ours > theirs", "holds"), ("ours > third", "reversed")]


def test_a_gain_is_from_the_smallest_memory_to_the_largest_that_both_have(judged):
    table = judged(
        rows("ours", [0.10, 0.20], memory=50),
        rows("ours_200", [0.40, 0.50], memory=200),  # gains 0.30 and 0.30
        rows("theirs", [0.50, 0.50], memory=50),
        rows("theirs_200", [0.60, 0.62], memory=200),  # gains 0.10 and 0.12
        rows("theirs_500", [0.90, 0.90], memory=500),
        change=('lower = "theirs"', 'lower = "theirs"\ngain = true'),
    )
    ((_, verdict, difference, interval, seeds, _, memory, *_),) = table.rows
    half = 12.7062 * 0.014142 / 2**0.5  # t(0.975, 1)
    assert (memory, difference, seeds, verdict) == ("50 to 200", "+19.0", "2", "holds")
    assert interval == f"[{19 - 100 * half:+.1f}, {19 + 100 * half:+.1f}]"


def test_only_tests_on_the_same_streams_count(judged):
    other = rows("theirs", [0.4, 0.4])
    for result in other:
        result["class_order"] = result["class_order"][::-1]
    assert [(line[4], line[1]) for line in judged(rows("ours", [0.5, 0.5]), other).rows] == [("0", "not shown")]
    fewer = rows("theirs", [0.4, 0.4], config={"train_images": 9})
    assert [(line[4], line[1]) for line in judged(rows("ours", [0.5, 0.5]), fewer).rows] == [("0", "not shown")]
    assert not judged(rows("ours", [0.5, 0.5]), rows("theirs", [0.4, 0.4], evaluated_on="validation"))


def test_the_claims_stand_in_pages(judged, tmp_path):
    table = judged(rows("ours", [0.5, 0.5]), rows("theirs", [0.4, 0.4]))
    everything = results.load_all(tmp_path / "out")
    page = pages.results_page(everything)
    assert "## Do the papers' orderings hold?\n\n" + str(table).strip() in page
    filled = pages.filled("<!-- table:claims co2l --><!-- /table -->", everything, where="")
    assert "| It is better | holds | +10.0 |" in filled
    with pytest.raises(ValueError, match="a table asks for the claims of 'cold', known are co2l, csd"):
        pages.filled("<!-- table:claims cold --><!-- /table -->", everything, where="here")
    assert "It is better" not in pages.filled("<!-- table:claims csd --><!-- /table -->", everything, where="")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('source = "Table 1"', "", "claim 1: missing source"),
        ('source = "Table 1"', 'sauce = ""', "unknown key 'sauce'; did you mean 'source'"),
        ('method = "co2l"', 'method = "co3l"', "unknown method 'co3l'; did you mean 'co2l'"),
        ("final accuracy", "finale accuracy", "unknown figure 'finale accuracy'; did you mean 'final accuracy'"),
        ('higher = "ours"', "higher = 3", "higher must be the name of a row, or several, got 3"),
        ('higher = "ours"', "higher = [3]", "higher must be the name of a row"),
        ('lower = "theirs"', 'lower = "theirs"\ngain = 1', "gain must be true or false, got 1"),
    ],
)
def test_a_wrong_file_of_claims_is_refused_by_name(old, new, message, tmp_path):
    path = tmp_path / "claims.toml"
    path.write_text(TOML.replace(old, new))
    with pytest.raises(ValueError, match=message):
        claims.load_claims(path)


def test_every_claim_is_on_rows_that_exist():
    papers, found = claims.load_claims()
    assert set(papers) == {claim.method for claim in found} == {"co2l", "ssil", "csd"}
    known = {row for suite in configs.suites() for row in configs.row_files(suite)}
    assert {row for claim in found for row in claim.higher + claim.lower} <= known
    assert len({(claim.claim, claim.figure) for claim in found}) == len(found) > 20
