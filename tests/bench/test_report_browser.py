"""The report in a real browser: it fits, is quiet, sorts, filters, and can be used without a mouse."""

from pathlib import Path

import pytest
from helpers.browser import barriers, browser, complaints, show

from avalanche_contrastive.bench import results
from avalanche_contrastive.bench.report import html, plots

ROOT = Path(__file__).parents[2]
WIDTHS = (390, 820, 1400)
SCHEMES = ("light", "dark")


@pytest.fixture(scope="module")
def driver():
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def page(driver, everything, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    html.write_report(everything, path)
    return path


def too_wide(driver):
    """How far the page is wider than its window, and which words stick out of what holds them."""
    return driver.execute_script("""
        const page = document.documentElement;
        const kinds = "h1, h2, h3, p, li, summary, figcaption, .scroll, form, input, output";
        const out = [...document.querySelectorAll(kinds)]
            .filter((it) => it.getBoundingClientRect().right > page.clientWidth + 1);
        return [page.scrollWidth - page.clientWidth, out.map((it) => it.outerHTML.slice(0, 120))];
    """)


def unfold(driver):
    driver.execute_script("for (const part of document.querySelectorAll('details')) part.open = true")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_and_is_quiet(driver, page, width, scheme):
    show(driver, page, width=width, scheme=scheme)
    assert too_wide(driver) == [0, []]
    unfold(driver)
    assert too_wide(driver) == [0, []]
    assert complaints(driver) == []


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_has_no_barriers(driver, page, width, scheme):
    show(driver, page, width=width, scheme=scheme)
    unfold(driver)
    assert barriers(driver) == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_committed_results_fit_and_have_no_barriers(driver, scheme, tmp_path):
    html.write_report(results.load_all(ROOT / "benchmarks" / "results"), tmp_path / "report.html")
    for width in WIDTHS:
        show(driver, tmp_path / "report.html", width=width, scheme=scheme)
        assert too_wide(driver) == [0, []]
        assert complaints(driver) == []
    driver.set_script_timeout(300)
    unfold(driver)
    assert barriers(driver) == []


@pytest.mark.parametrize(("scheme", "text"), [("light", "rgb(27, 31, 36)"), ("dark", "rgb(230, 237, 243)")])
def test_figures_follow_the_scheme(driver, page, scheme, text):
    show(driver, page, scheme=scheme)
    colours = driver.execute_script("""
        const all = [...document.querySelectorAll("figure svg *")].map((it) => getComputedStyle(it));
        return [[...new Set(all.map((it) => it.fill))], [...new Set(all.map((it) => it.stroke))]];
    """)
    shown = {colour for kind in colours for colour in kind}
    assert text in shown
    ours = [tuple(bytes.fromhex(colour[1:])) for colour in plots.COLOURS[0]]
    lines = dict(zip(SCHEMES, (f"rgb({r}, {g}, {b})" for r, g, b in ours), strict=True))
    assert lines[scheme] in shown
    assert not shown & {line for name, line in lines.items() if name != scheme}


def column(driver, place):
    """Cells of a column of the first table with a memory."""
    return driver.execute_script(
        "return [...document.querySelectorAll('[id^=\"4-\"] table')[0].tBodies[0].rows]"
        ".map((row) => row.cells[arguments[0]].textContent)",
        place,
    )


def test_a_heading_sorts_its_column_and_gives_back_the_order(driver, page):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    show(driver, page)
    table = driver.find_elements(By.CSS_SELECTOR, "[id^='4-'] table")[0]
    heads = table.find_elements(By.CSS_SELECTOR, "thead th")
    before = {place: column(driver, place) for place in (0, 2)}
    values = [float(cell.split()[0]) for cell in before[2]]
    heads[2].find_element(By.TAG_NAME, "button").click()
    assert [float(cell.split()[0]) for cell in column(driver, 2)] == sorted(values, reverse=True)
    assert heads[2].get_attribute("aria-sort") == "descending"
    driver.switch_to.active_element.send_keys(Keys.ENTER)  # by keyboard
    assert [float(cell.split()[0]) for cell in column(driver, 2)] == sorted(values)
    assert heads[2].get_attribute("aria-sort") == "ascending"
    driver.switch_to.active_element.send_keys(Keys.SPACE)
    assert column(driver, 2) == before[2]
    assert heads[2].get_attribute("aria-sort") is None
    heads[1].find_element(By.TAG_NAME, "button").click()
    memories = column(driver, 1)
    assert memories == ["80", "80", "20", "20", "–"]  # dashes last
    heads[1].find_element(By.TAG_NAME, "button").click()
    assert column(driver, 1)[-1] == "–"
    heads[0].find_element(By.TAG_NAME, "button").click()
    assert column(driver, 0) == sorted(before[0], key=str.lower)
    assert heads[1].get_attribute("aria-sort") is None


def test_the_filter_leaves_rows_with_all_its_words(driver, page):
    from selenium.webdriver.common.by import By

    show(driver, page)
    field = driver.find_element(By.ID, "filter")
    rows = """return [...document.querySelectorAll("tbody tr, .configs > details")]
        .filter((row) => !row.hidden).map((row) => row.textContent)"""
    whole = driver.execute_script(rows)
    field.send_keys("oURS 80")
    shown = driver.execute_script(rows)
    assert 0 < len(shown) < len(whole)
    assert all("ours" in row.lower() and "80" in row for row in shown)
    assert driver.find_element(By.CSS_SELECTOR, ".filter output").text.startswith(f"{len(shown)} of ")
    field.clear()
    field.send_keys("<script>nothing")
    assert not driver.execute_script(rows)
    assert driver.execute_script("return document.querySelectorAll('table[data-empty]').length") > 5
    field.clear()
    field.send_keys(" ")
    assert driver.execute_script(rows) == whole
    assert complaints(driver) == []


def test_a_wide_table_scrolls_by_keyboard_and_shows_that_it_does(driver, page):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    show(driver, page, width=390)
    box = driver.find_elements(By.CSS_SELECTOR, "[id^='4-'] .scroll")[0]
    assert driver.execute_script("return arguments[0].scrollWidth > arguments[0].clientWidth", box)
    assert driver.execute_script("return arguments[0].offsetHeight - arguments[0].clientHeight > 8", box), "its bar"
    driver.execute_script("arguments[0].focus()", box)
    assert driver.execute_script("return document.activeElement === arguments[0]", box)
    box.send_keys(Keys.ARROW_RIGHT)
    box.send_keys(Keys.ARROW_RIGHT)
    wait = "const box = arguments[0], done = arguments[1]; setTimeout(() => done(box.scrollLeft), 400)"
    assert driver.execute_async_script(wait, box) > 0


def test_a_link_opens_the_folded_part_that_it_leads_to(driver, page):
    from selenium.webdriver.common.by import By

    show(driver, page)
    link = driver.find_element(By.XPATH, "//nav//a[text()='configs']")
    part = driver.find_element(By.ID, link.get_attribute("href").split("#")[1])
    assert part.get_attribute("open") is None
    link.click()
    opened = "const part = arguments[0], done = arguments[1]; setTimeout(() => done(part.open), 100)"
    assert driver.execute_async_script(opened, part) is True


def test_a_strangers_words_run_nothing(driver, page):
    """The made-up results have a label with a script in it; and a script put into the page afterwards is refused."""
    show(driver, page)
    assert driver.execute_script("return document.scripts.length") == 1
    assert driver.execute_script("""
        const made = document.createElement("script");
        made.textContent = "window.ran = 1";
        document.body.append(made);
        return window.ran === undefined;
    """)
    assert any("Content Security Policy" in message for message in complaints(driver))
