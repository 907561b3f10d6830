"""The documentation's pages in a real browser: contrast, names and keyboard, by axe-core, light and dark."""

import subprocess
import sys

import pytest
from helpers.browser import barriers, browser, show
from helpers.pages import ROOT

PAGES = ("index", "quickstart", "guides/runner", "guides/galleries", "guides/speed", "results", "api/losses")
OF_THE_THEME = "region: "  # furo's links beside a title lie outside its landmarks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("furo")
    folder = tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, "-m", "sphinx", "-q", "-b", "html", ROOT / "docs", folder], check=True)
    return folder


@pytest.fixture(scope="module")
def driver():
    with browser() as found:
        yield found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_the_page_has_no_barriers(driver, site, page, scheme):
    show(driver, site / f"{page}.html", scheme=scheme)
    assert [found for found in barriers(driver) if not found.startswith(OF_THE_THEME)] == []
