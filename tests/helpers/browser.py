"""A real browser for tests of pages: headless Chromium, where it is installed.

Debian: `apt-get install chromium chromium-driver`. Accessibility is checked by axe-core where its file is found: at
$AXE_CORE, or in node_modules of the checkout after `npm install --no-save axe-core`.
"""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

AXE = Path(os.environ.get("AXE_CORE", Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"))
PROGRAMS = "chromium", "chromedriver"


@contextmanager
def browser():
    """A driver of selenium; the test is skipped where there is no browser."""
    webdriver = pytest.importorskip("selenium.webdriver")
    if not all(map(shutil.which, PROGRAMS)):
        pytest.skip("no chromium and chromedriver here")
    options = webdriver.ChromeOptions()
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def show(driver, page, *, width=1280, scheme="light"):
    """Open a page at that width, in the light or the dark scheme."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    driver.get(page.resolve().as_uri())


def complaints(driver):
    """What the browser's console says since it was last asked."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def barriers(driver):
    """What axe-core finds: its rule and the place, one line each. It need not fetch style sheets a second time."""
    if not AXE.is_file():
        pytest.skip(f"no axe-core at {AXE}")
    driver.execute_script(AXE.read_text(encoding="utf-8"))
    failed = "arguments[0]({violations: [{id: String(error), nodes: []}]})"
    run = f"axe.run(document, {{preload: false}}).then(arguments[0], error => {failed})"
    found = driver.execute_async_script(run)["violations"]
    return [f"{rule['id']}: {node['html'][:200]}" for rule in found for node in rule["nodes"] or [{"html": ""}]]
