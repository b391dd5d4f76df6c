"""The page of `runtime serve` in Chromium, with a real model: what a visitor does, and what he sees."""

import base64
import json
import os
import re
import shutil
import subprocess

import pytest
from playwright.sync_api import expect, sync_playwright

from server import Server

# The machine of a test has other work too.
expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    assert chromium, "chromium is missing; on Debian: apt-get install chromium"
    with sync_playwright() as playwright:
        # Chromium's sandbox refuses to run as root.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(programs, model):
    with Server(programs, "--model", model, "--min-score", "0.1") as server:
        yield server


@pytest.fixture(scope="module")
def photos(programs, data, server):
    """Images with two classes at least, the one with the most detections first; and what the server finds in them."""
    found = {path: server.detect(path.read_bytes())[1]["detections"] for path in sorted((data / "test").iterdir())}
    classes = lambda path: len({one["label"] for one in found[path]})
    paths = sorted((path for path in found if classes(path) >= 2), key=lambda path: -len(found[path]))
    assert len(paths) >= 3, "the detector finds too little"
    return {path: found[path] for path in paths}


class Visit:
    """A page and what went wrong in it."""

    def __init__(self, browser, url, **options):
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.requests = []
        self.faults = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda message: message.type in ("error", "warning") and self.faults.append(message.text))
        self.page.goto(url)
        self.url = url

    def choose(self, *paths):
        self.page.set_input_files("#files", list(paths))
        expect(self.page.locator("#summary")).to_contain_text("detections")

    def score(self, value):
        self.page.locator("#score").fill(str(value))

    def detections_sent(self):
        return sum("/detect" in url for url in self.requests)

    def options(self):
        return self.page.locator("#list [role=option]")


@pytest.fixture
def visit(browser, server):
    visits = []

    def start(url=server.url + "/", faults=(), **options):
        visits.append((Visit(browser, url, **options), faults))
        return visits[-1][0]

    yield start
    for visit, faults in visits:
        # The tests read the canvas, the page does not.
        faults = [*faults, "willReadFrequently"]
        # Chromium reports every status from 400 on as an error, also an expected one.
        unexpected = [fault for fault in visit.faults if not any(text in fault for text in faults)]
        assert not unexpected
        elsewhere = [url for url in visit.requests if not url.startswith((visit.url, "data:"))]
        assert not elsewhere, "the page loads from elsewhere"
        visit.context.close()


def drop(page, path, kind="image/png", name=None):
    content = base64.b64encode(path.read_bytes()).decode()
    transfer = page.evaluate_handle(
        """([content, name, type]) => {
            const transfer = new DataTransfer();
            const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
            transfer.items.add(new File([bytes], name, {type}));
            return transfer;
        }""",
        [content, name or path.name, kind],
    )
    page.dispatch_event("#view", "dragover", {"dataTransfer": transfer})
    assert page.evaluate("document.body.className") == "dragging"
    page.dispatch_event("#view", "drop", {"dataTransfer": transfer})


def colors(page):
    """How many pixels of the canvas have which color."""
    return page.evaluate(
        """() => {
            const canvas = document.querySelector("#canvas");
            const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            const counts = {};
            for (let i = 0; i < data.length; i += 4) {
                const color = `rgb(${data[i]}, ${data[i + 1]}, ${data[i + 2]})`;
                counts[color] = (counts[color] ?? 0) + 1;
            }
            return counts;
        }"""
    )


def test_a_dropped_image_shows_its_boxes(visit, photos):
    path, found = next(iter(photos.items()))
    v = visit()
    drop(v.page, path)
    expect(v.page.locator("#summary")).to_contain_text(f"of {len(found)} detections")
    v.score(0.1)
    expect(v.options()).to_have_count(len(found))
    assert v.options().all_inner_texts() == [f"{one['label']}\n{one['score']:.2f}" for one in found]
    # The boxes have the colors of the classes.
    drawn = colors(v.page)
    for swatch in v.page.locator("#classes .swatch").all():
        color = swatch.evaluate("node => getComputedStyle(node).backgroundColor")
        assert drawn.get(color, 0) > 50, f"{color} is not drawn"
    label = v.page.locator("#canvas").get_attribute("aria-label")
    assert all(one["label"] in label for one in found)


def test_the_slider_and_the_classes_filter_without_asking_the_server(visit, photos):
    path, found = next(iter(photos.items()))
    v = visit()
    v.choose(path)
    for least in [0.1, 0.15, 0.3, 1]:
        v.score(least)
        expect(v.options()).to_have_count(sum(one["score"] > least for one in found))
    v.score(0.1)
    label = found[0]["label"]
    before = colors(v.page)
    v.page.get_by_role("checkbox", name=re.compile(f"^{label}")).uncheck()
    expect(v.options()).to_have_count(sum(one["label"] != label for one in found))
    assert colors(v.page) != before
    curl = v.page.locator("#curl").inner_text()
    assert "min_score=0.1&classes=" in curl and not any(label in part for part in curl.split("classes=")[1:])
    v.page.get_by_role("button", name="None").click()
    expect(v.options()).to_have_count(0)
    expect(v.page.locator("#command")).to_be_hidden()
    v.page.get_by_role("button", name="All").click()
    expect(v.options()).to_have_count(len(found))
    assert v.detections_sent() == 1


def test_the_command_finds_what_the_page_shows(visit, photos, tmp_path):
    path, found = next(iter(photos.items()))
    odd = tmp_path / "it's a shape.png"
    odd.write_bytes(path.read_bytes())
    v = visit()
    v.choose(odd)
    v.score(0.15)
    v.page.get_by_role("checkbox", name=re.compile(f"^{found[0]['label']}")).uncheck()
    v.context.grant_permissions(["clipboard-read", "clipboard-write"])
    v.page.get_by_role("button", name="Copy").click()
    expect(v.page.get_by_role("button", name="Copied")).to_be_visible()
    command = v.page.evaluate("navigator.clipboard.readText()")
    shown = v.options().all_inner_texts()
    answer = json.loads(subprocess.check_output(["bash", "-c", command], cwd=tmp_path, stderr=subprocess.DEVNULL))
    assert [f"{one['label']}\n{one['score']:.2f}" for one in answer["detections"]] == shown


def test_stage_times_are_shown(visit, photos):
    v = visit()
    v.choose(next(iter(photos)))
    names = v.page.locator("#times dt").all_text_contents()
    assert names == ["queue", "decode", "prepare", "network", "postprocess", "transfer", "Round trip"]
    times = [float(text.removesuffix(" ms")) for text in v.page.locator("#times dd").all_inner_texts()]
    assert times[-1] > 0 and sum(times[:-1]) == pytest.approx(times[-1], abs=0.5 * len(times))


def test_several_images_are_detected_and_one_is_shown(visit, photos, tmp_path):
    broken = tmp_path / "<img src=x onerror=alert(1)>.jpg"
    broken.write_text("no image")
    paths = list(photos)[:3]
    v = visit(faults=["status of 4"])
    v.choose(*paths, broken)
    buttons = v.page.locator("#strip button")
    expect(buttons).to_have_count(4)
    for button, path in zip(buttons.all(), paths):
        expect(button).to_have_accessible_name(re.compile(rf"^{re.escape(path.name)}: \d+ detections$"))
        button.click()
        expect(v.page.locator("#summary")).to_contain_text(path.name)
    # Errors are shown in words, and names of files are only text.
    buttons.last.click()
    problem = v.page.get_by_role("alert")
    expect(problem).to_contain_text(broken.name + ": ")
    expect(problem).to_contain_text("JPEG")
    expect(v.page.locator("#panel")).to_be_hidden()
    expect(v.page.get_by_text("Drop images here")).to_be_visible()
    assert v.page.locator("img").count() == 0
    assert v.detections_sent() == 4


def test_the_server_that_has_gone_is_named_and_asked_again(visit, photos):
    path = next(iter(photos))
    v = visit(faults=["Failed to load resource", "ERR_"])
    v.page.route("**/detect?*", lambda route: route.abort("connectionrefused"))
    v.page.set_input_files("#files", path)
    expect(v.page.get_by_role("alert")).to_contain_text("The server does not respond")
    v.page.unroute("**/detect?*")
    v.page.get_by_role("button", name="Try again").click()
    expect(v.page.locator("#summary")).to_contain_text("detections")
    expect(v.page.get_by_role("alert")).to_be_hidden()


def test_everything_can_be_done_with_the_keyboard(visit, photos):
    path, found = next(iter(photos.items()))
    v = visit()
    # Chromium hears of choosers some time after it was asked to.
    v.page.on("filechooser", lambda _: None)
    focused = lambda: v.page.evaluate("document.activeElement.id || document.activeElement.textContent")
    v.page.keyboard.press("Tab")
    assert focused() == "files"
    ring = v.page.locator("label.button[for=files]").evaluate("node => getComputedStyle(node).outlineStyle")
    assert ring == "solid", "focus is not visible"
    with v.page.expect_file_chooser() as chooser:
        v.page.keyboard.press("Enter")
    chooser.value.set_files(path)
    expect(v.page.locator("#summary")).to_contain_text("detections")
    v.page.keyboard.press("Tab")
    assert focused() == "score"
    v.page.keyboard.press("Home")
    expect(v.page.locator("#score-value")).to_have_text("0.10")
    expect(v.options()).to_have_count(len(found))
    v.page.keyboard.press("ArrowRight")
    expect(v.page.locator("#score-value")).to_have_text("0.11")
    v.page.keyboard.press("Home")
    for _ in range(3):
        v.page.keyboard.press("Tab")
    assert v.page.evaluate("document.activeElement.type") == "checkbox"
    v.page.keyboard.press("Space")
    expect(v.page.locator("#classes input").first).not_to_be_checked()
    v.page.keyboard.press("Space")
    while focused() != "list":
        v.page.keyboard.press("Tab")
    v.page.keyboard.press("ArrowDown")
    v.page.keyboard.press("ArrowDown")
    selected = v.page.locator("#list [aria-selected=true]")
    expect(selected).to_have_count(1)
    assert v.page.locator("#list").get_attribute("aria-activedescendant") == selected.get_attribute("id") == "detection-1"
    v.page.keyboard.press("Escape")
    expect(selected).to_have_count(0)


def test_an_image_is_pasted(visit, photos):
    path, found = next(iter(photos.items()))
    v = visit()
    v.page.evaluate(
        """(content) => {
            const transfer = new DataTransfer();
            const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
            transfer.items.add(new File([bytes], "image.png", {type: "image/png"}));
            document.dispatchEvent(new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true}));
        }""",
        base64.b64encode(path.read_bytes()).decode(),
    )
    expect(v.page.locator("#summary")).to_contain_text("image.png: ")
    expect(v.page.locator("#summary")).to_contain_text(f"of {len(found)} detections")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_without_scrolling_sideways(visit, photos, scheme):
    v = visit(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True, device_scale_factor=3, color_scheme=scheme)
    expect(v.page.get_by_text("Take a photo")).to_be_visible()
    assert v.page.locator("#photo").get_attribute("capture") == "environment"
    v.choose(*list(photos)[:3])
    assert v.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    canvas = v.page.locator("#canvas").bounding_box()
    assert 300 < canvas["width"] <= 360
    # Sharp: a pixel of the canvas for each of the screen.
    assert v.page.evaluate("document.querySelector('#canvas').width") == pytest.approx(3 * canvas["width"], abs=3)
    v.score(0.1)
    for target in v.page.locator("#strip button, .button, #classes label, #score, #list li").all():
        if target.is_visible():
            assert target.bounding_box()["height"] >= 38, target.inner_text()
    v.page.locator("#list li").first.tap()
    expect(v.page.locator("#list [aria-selected=true]")).to_have_count(1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast(visit, photos, scheme):
    v = visit(color_scheme=scheme, reduced_motion="reduce")
    v.choose(next(iter(photos)))
    v.score(0.1)
    ratios = v.page.evaluate(
        """() => {
            const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
            const light = (color) => {
                const [r, g, b] = numbers(color).map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const behind = (node) => {
                for (; node; node = node.parentElement) {
                    const color = getComputedStyle(node).backgroundColor;
                    if ((numbers(color)[3] ?? 1) > 0) return color;
                }
            };
            const texts = [...document.querySelectorAll("body *")].filter((node) =>
                node.checkVisibility() && [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()));
            return texts.map((node) => {
                const [a, b] = [light(getComputedStyle(node).color), light(behind(node))];
                return [node.textContent, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
            });
        }"""
    )
    assert len(ratios) > 10
    assert [text for text, ratio in ratios if ratio < 4.5] == []
    assert v.page.evaluate("document.getAnimations().length") == 0


def test_a_server_with_a_token_asks_for_it(visit, programs, model, photos):
    path = next(iter(photos))
    with Server(programs, "--model", model, env={**os.environ, "DETECTOR_TOKEN": "s3cret"}) as server:
        v = visit(server.url + "/", faults=["status of 401"])
        token = v.page.get_by_label(re.compile("asks for a token"))
        expect(token).to_be_focused()
        v.page.set_input_files("#files", path)
        token.fill("wrong")
        token.press("Enter")
        refused = v.page.get_by_label("The server refused this token")
        expect(refused).to_be_focused()
        refused.fill("s3cret")
        refused.press("Enter")
        expect(v.page.locator("#summary")).to_contain_text("detections")
        expect(v.page.locator("#access")).to_be_hidden()
        command = v.page.locator("#curl").inner_text()
        assert "$DETECTOR_TOKEN" in command and "s3cret" not in command


def test_a_server_with_several_models_offers_them(visit, programs, model, photos, tmp_path):
    for name in ["one", "two"]:
        (tmp_path / name / "1").mkdir(parents=True)
        shutil.copy(model, tmp_path / name / "1/model.onnx")
    with Server(programs, "--models", tmp_path) as server:
        v = visit(server.url + "/", faults=["status of 400"])
        expect(v.page.locator("#problem")).to_contain_text("several models")
        v.page.get_by_role("link", name="two").click()
        expect(v.page.locator("#model")).to_contain_text("two:")
        expect(v.page.locator("#problem")).to_be_hidden()
        v.choose(next(iter(photos)))
        assert "model=two" in v.page.locator("#curl").inner_text()
