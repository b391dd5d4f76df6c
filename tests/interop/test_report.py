"""The report of `trainer` in a browser: what it shows, every interaction, and that names of files and classes stay texts."""

import json
import re
import shutil

import pytest
from conftest import call
from playwright.sync_api import expect, sync_playwright

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&"
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
CONFIG = """
data:
  train: {annotations: train.json, images: train}
  validation: {annotations: val.json, images: val}
run: {epochs: 3, batch_size: 4}
model:
  backbone: {depth: 18, norm: {kind: group}}
  pyramid: {width: 16}
  heads: {width: 16, depth: 1}
  preprocessing: {shorter_side: 64, longer_side: 64}
"""


@pytest.fixture(scope="module")
def runs(programs, data, tmp_path_factory):
    """Folders of two finished runs, whose first class has a hostile name, and of one before its first validation."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(data, folder / "shapes")
    for split in ["train", "val"]:
        path = folder / "shapes" / f"{split}.json"
        coco = json.loads(path.read_text())
        coco["categories"][0]["name"] = HOSTILE
        # Twelve images suffice for training.
        coco["images"] = coco["images"][:12]
        known = {image["id"] for image in coco["images"]}
        coco["annotations"] = [one for one in coco["annotations"] if one["image_id"] in known]
        path.write_text(json.dumps(coco))
    (folder / "shapes/hostile.yaml").write_text(CONFIG)
    rates = {"first": "0.001", "second": "0.002"}
    for name, rate in rates.items():
        arguments = ["--config", "shapes/hostile.yaml", "--out", name, "--set", f"optimizer.learning_rate={rate}"]
        call(programs / "trainer", "fit", *arguments, cwd=folder)
    (folder / "young").mkdir()
    shutil.copy(folder / "first/config.yaml", folder / "young")
    lines = (folder / "first/log.jsonl").read_text().splitlines()
    (folder / "young/log.jsonl").write_text("\n".join([lines[0], "damaged", lines[1], '{"step": 3, "ep']))
    return folder


@pytest.fixture(scope="module")
def report(programs, runs):
    """Writes the report of runs, and returns its address."""

    def write(*names):
        out = runs / f"{'-'.join(names)}.html"
        call(programs / "trainer", "report", *names, "--out", out, cwd=runs)
        return out.as_uri()

    return write


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium")
        assert chromium, "chromium is missing; start the tests with tests/interop/run"
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def show(browser):
    """Opens a page. At the end of the test, the page must have reported no error and asked for no other file."""
    contexts, problems = [], []

    def open_page(address, **options):
        context = browser.new_context(**(options or DESKTOP))
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append("a hostile name ran as a script"))
        page.on("request", lambda request: request.url.startswith(("data:", address)) or problems.append(request.url))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def chart(page, title):
    return page.locator("figure", has=page.get_by_text(title, exact=True))


def values(page, table, column):
    return page.get_by_role("table", name=table).locator(f"tbody tr > *:nth-child({column})").all_inner_texts()


def test_the_numbers_are_those_of_the_run(show, report, runs, programs):
    page = show(report("first"))
    log = [json.loads(line) for line in (runs / "first/log.jsonl").read_text().splitlines()]
    best = max((line["validation"] for line in log if line.get("validation")), key=lambda one: one["AP"])
    shown = dict(zip(values(page, "COCO metrics", 1), values(page, "COCO metrics", 3)))
    for name, value in shown.items():
        assert value == ("–" if best[name] < 0 else f"{best[name]:.4f}"), name
    detections, truth = runs / "first/best.detections.json", runs / "shapes/val.json"
    score = call(programs / "runtime", "score", "--truth", truth, "--detections", detections, "--json", "-")
    assert abs(json.loads(score)["AP"] - best["AP"]) < 1e-9
    expect(page.locator(".facts")).to_contain_text("3 epochs")
    expect(page.locator("#origin")).to_contain_text("trainer fit --config shapes/hostile.yaml")
    page.get_by_text("Configuration, including default values").click()
    expect(page.locator("pre")).to_contain_text("epochs: 3")


def test_names_stay_texts(show, report):
    page = show(report("first"))
    assert HOSTILE in values(page, "classes", 1)
    assert page.locator("img").count() == 0
    assert page.locator("#images").inner_text()


def test_charts_show_values_zoom_and_have_logarithmic_axes(show, report):
    page = show(report("first"))
    loss = chart(page, "Classification loss")
    plot = loss.locator(".plot")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    expect(loss.locator(".tip")).to_have_text(re.compile(r"step \d+each step [\d.]+smoothed [\d.]+"))
    ticks = lambda: plot.locator("text").all_text_contents()
    before = ticks()
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], middle, steps=4)
    page.mouse.up()
    assert ticks() != before
    plot.dblclick()
    assert ticks() == before
    path = lambda: plot.locator("path").last.get_attribute("d")
    for axis in ["log x", "log y"]:
        line, button = path(), loss.get_by_role("button", name=axis)
        pressed = button.get_attribute("aria-pressed")
        button.click()
        assert path() != line and button.get_attribute("aria-pressed") != pressed
    loss.get_by_role("button", name="each step").click()
    expect(plot.locator("path")).to_have_count(1)
    line = path()
    page.get_by_label("Smoothing").fill("0.2")
    assert chart(page, "Classification loss").locator("path").last.get_attribute("d") != line


def test_charts_work_with_the_keyboard(show, report):
    page = show(report("first"))
    precision = chart(page, "Average precision after each validation")
    plot, tip = precision.locator(".plot"), precision.locator(".tip")
    plot.focus()
    for key, epoch in [("ArrowRight", 3), ("ArrowLeft", 2), ("ArrowLeft", 1), ("ArrowLeft", 1)]:
        page.keyboard.press(key)
        expect(tip).to_contain_text(f"epoch {epoch}AP ")
    width = lambda: plot.locator("text").all_text_contents()
    before = width()
    page.keyboard.press("+")
    assert width() != before
    page.keyboard.press("Escape")
    assert width() == before
    expect(tip).to_be_hidden()


def test_tables_sort(show, report):
    page = show(report("first"))
    header = page.get_by_role("table", name="classes").locator("th", has_text="objects")
    for order in ["descending", "ascending"]:
        header.get_by_role("button").click()
        assert header.get_attribute("aria-sort") == order
        counts = [int(text) for text in values(page, "classes", 2)]
        assert counts == sorted(counts, reverse=order == "descending") and len(set(counts)) > 1
    page.get_by_role("table", name="classes").locator("th button", has_text="class").first.press("Enter")
    names = values(page, "classes", 1)
    assert names[-1] == "triangle" and sorted(names[1:]) == names[1:]


def test_every_class_has_a_precision_recall_curve(show, report):
    page = show(report("first"))
    curves = page.locator("#curves figure")
    titles = curves.locator("figcaption b").all_inner_texts()
    assert titles[0] == "all classes (mean)" and HOSTILE in titles
    curves.nth(1).locator(".plot").hover()
    expect(curves.nth(1).locator(".tip")).to_have_text(re.compile(r"recall [\d.]+IoU 0.75 [\d.]+IoU 0.50 [\d.]+, score [\d.]+"))
    page.get_by_label("Filter").fill("ST")
    expect(curves).to_have_count(1)
    expect(curves).to_contain_text("star")


def test_a_cell_of_the_confusion_matrix_opens_its_images(show, report):
    page = show(report("first"))
    dialog = page.get_by_role("dialog")
    cells = page.locator(".matrix td button")
    for index in range(cells.count()):
        title = cells.nth(index).get_attribute("aria-label")
        cells.nth(index).press("Enter")
        expect(dialog.locator("h3")).to_contain_text(title.split(": ", 1)[1])
        if not title.endswith(" found"):
            assert dialog.locator("figure.image svg image").count() > 0
            kind = title.split(": ", 1)[1]
            expect(dialog.locator("figure.image").first).to_contain_text(kind)
        page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()
    page.get_by_role("table", name="errors").locator("tbody button").first.click()
    expect(dialog).to_be_visible()
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()


def test_the_slider_chooses_detections(show, report):
    page = show(report("first"))
    found, truth = page.locator("#images rect.found"), page.locator("#images rect.truth")
    slider = page.get_by_label("Minimum score")
    counts = []
    for score in ["0.01", "0.3", "1"]:
        slider.fill(score)
        counts.append(found.count())
        expect(page.locator("output")).to_have_text(f"{float(score):.2f}")
    assert counts[0] >= counts[1] >= counts[2] == 0 and counts[0] > 0
    expect(page.locator("#images figure").first).to_contain_text("0 of")
    slider.fill("0.01")
    slider.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("output")).to_have_text("0.02")
    assert truth.count() > 0
    page.get_by_label("ground truth").uncheck()
    expect(truth).to_have_count(0)
    page.locator("#images").get_by_label("detections").uncheck()
    expect(found).to_have_count(0)


def test_several_runs_are_compared(show, report):
    page = show(report("first", "second"))
    assert values(page, "runs", 1) == ["first", "second"]
    rows = dict(zip(values(page, "differences of configuration", 1), values(page, "differences of configuration", 3)))
    assert rows == {"optimizer.learning_rate": "0.002"}
    lines = chart(page, "AP after each validation").locator("path.line")
    expect(lines).to_have_count(2)
    chart(page, "AP after each validation").get_by_role("button", name="first").click()
    expect(lines).to_have_count(1)
    page.get_by_label("Details of run").select_option("second")
    expect(page.locator("#origin")).to_contain_text("--out second")


def test_a_run_before_its_first_validation_is_reported(show, report):
    page = show(report("young"))
    expect(page.locator(".notes")).to_have_text("log.jsonl is damaged; left out line 2")
    expect(page.locator(".facts")).to_contain_text("0 of 3 epochs")
    expect(chart(page, "Box loss").locator("path")).to_have_count(2)
    expect(page.locator("#images")).to_contain_text("no results on the validation data yet")


@pytest.mark.parametrize("names", [["first"], ["first", "second"], ["young"]])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phones_need_no_sideways_scrolling(show, report, names, scheme):
    page = show(report(*names), color_scheme=scheme, **PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    plot = page.locator(".plot").filter(has=page.locator("svg")).first
    plot.tap()
    expect(plot.locator(".tip")).to_be_visible()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 27)")
