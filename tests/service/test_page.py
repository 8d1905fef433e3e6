"""The page, in a real browser: search, more like this, filters, bits, cut-off, phone, keyboard."""

import os
import shutil
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn

from crovca.archive.archive import Archive
from crovca.archive.demo_archive import write_pixel_encoder
from crovca.archive.duplicates import find
from crovca.service.api import create_app
from crovca.service.collection import Collection
from tests.archive.test_duplicates import EDITS, save, scene

pytest.importorskip("selenium")
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

pytestmark = [pytest.mark.slow, pytest.mark.starts]

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        if os.environ.get("CROVCA_SERVERS") == "required":
            pytest.fail("no chromium and chromedriver, and CROVCA_SERVERS=required: run 'make servers'")
        pytest.skip("chromium and chromedriver are not installed: make servers")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    opened.set_window_size(1280, 900)
    yield opened
    opened.quit()


@contextmanager
def served(collection):
    """The address of a service in a thread."""
    server = uvicorn.Server(uvicorn.Config(create_app([collection]), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/c/{collection.name}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def address(collection):
    with served(collection) as at:
        yield at


@contextmanager
def phone(browser):
    """The browser as one, 390 pixels wide."""
    browser.set_window_size(500, 844)  # the narrowest that chromium makes a window; the emulation below is a phone
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    )
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.set_window_size(1280, 900)


def dark(browser, on):
    """Ask for dark colors."""
    wanted = [{"name": "prefers-color-scheme", "value": "dark" if on else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wanted})


def wait(browser, condition):
    return WebDriverWait(browser, 60).until(lambda _: condition())


def all_of(browser, selector):
    return browser.find_elements(By.CSS_SELECTOR, selector)


def shown(browser):
    """Ids of the cards."""
    return browser.execute_script("return [...document.querySelectorAll('.card .path')].map(e => e.textContent)")


def keep(browser, name):
    """Screenshots for whoever wants to look: CROVCA_SCREENSHOTS names their folder."""
    folder = os.environ.get("CROVCA_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(Path(folder) / f"{name}.png"))


def test_the_page(browser, address, made):
    ids = made[4]
    browser.get(address)
    assert "Write the id of an item" in browser.find_element(By.ID, "results").text
    wait(browser, lambda: len(all_of(browser, ".map li")) == 96)
    wait(browser, lambda: browser.execute_script("return document.querySelector('.map img').naturalWidth") > 0)
    keep(browser, "map")
    all_of(browser, ".map a")[0].click()
    wait(browser, lambda: len(shown(browser)) == 48)
    assert "like=" in browser.current_url
    browser.get(address)
    browser.find_element(By.ID, "text").send_keys(ids[3], Keys.ENTER)
    wait(browser, lambda: len(shown(browser)) == 48)
    assert browser.current_url.endswith(f"like={ids[3].replace('/', '%2F')}")  # a permanent link
    wait(browser, lambda: browser.execute_script("return document.querySelector('.card img').naturalWidth") > 0)
    keep(browser, "page")

    first = shown(browser)[0]
    all_of(browser, ".card .picture")[0].click()  # more like this
    wait(browser, lambda: browser.find_element(By.ID, "text").get_attribute("value") == first)

    browser.execute_script("window.scrollTo(0, document.body.scrollHeight)")
    wait(browser, lambda: len(shown(browser)) > 48)

    browser.find_element(By.CSS_SELECTOR, "#filters summary").click()
    wait(browser, lambda: all_of(browser, "#filters input"))
    browser.find_element(By.CSS_SELECTOR, "#filters input[value='digit=5']").click()
    wait(browser, lambda: {id[0] for id in shown(browser)} == {"5"})
    assert "f=digit%3D5" in browser.current_url

    browser.find_element(By.CSS_SELECTOR, "#compare summary").click()
    wait(browser, lambda: len(all_of(browser, ".bits tbody tr")) == 3)
    rows = [row.text for row in all_of(browser, ".bits tbody tr")]
    assert rows[0].startswith("16 2")
    assert rows[2].startswith("floats 84")
    assert "100 %" in rows[2]
    keep(browser, "bits")
    slider = browser.find_element(By.ID, "bits-slider")
    for stop, sign in (("floats", "cosine"), ("16", "bits=16")):
        browser.execute_script(
            "arguments[0].value = arguments[0].dataset.stops.split(',').indexOf(arguments[1]);"
            "for (const kind of ['input', 'change']) arguments[0].dispatchEvent(new Event(kind, {bubbles: true}))",
            slider,
            stop,
        )
        wait(browser, lambda sign=sign: sign in browser.find_element(By.ID, "results").text + browser.current_url)
    assert "floats" not in browser.current_url

    browser.find_element(By.CSS_SELECTOR, "#cut summary").click()
    wait(browser, lambda: all_of(browser, ".bars button"))
    before = len(shown(browser))
    browser.execute_script("document.querySelectorAll('.bars button')[5].click()")
    wait(browser, lambda: 0 < len(shown(browser)) < before)

    browser.get(browser.current_url)  # the address says all
    assert {id[0] for id in shown(browser)} == {"5"}
    assert len(shown(browser)) < before
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_plus_and_minus_and_the_keyboard(browser, address, made):
    browser.get(f"{address}?like={made[4][0]}")
    wait(browser, lambda: shown(browser))
    browser.find_element(By.CSS_SELECTOR, "[data-add=like]").click()
    wait(browser, lambda: "binary cross-entropy" in browser.find_element(By.ID, "results").text)
    all_of(browser, "[data-add=unlike]")[-1].click()
    wait(browser, lambda: "unlike=" in browser.current_url)
    all_of(browser, "[data-remove]")[0].click()
    wait(browser, lambda: "unlike=" not in browser.current_url)
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.ARROW_RIGHT)
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert browser.switch_to.active_element == all_of(browser, ".card .picture")[1]
    browser.switch_to.active_element.send_keys("/")
    assert browser.switch_to.active_element.get_attribute("id") == "text"


def test_a_phone(browser, address, made):
    with phone(browser):
        for path in (address, f"{address}?like={made[4][0]}", f"{address}/duplicates?radius=2"):
            browser.get(path)
            wait(browser, lambda: all_of(browser, ".card, .map li"))
            assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
            keep(browser, f"phone-{len(path)}")


@pytest.fixture(scope="module")
def archive_of_pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    for seed in range(12):
        save(scene(seed), folder / "photos" / f"{'odd' if seed % 2 else 'even'}" / f"{seed}.png")
    write_pixel_encoder(folder / "encoder")
    archive = Archive.create(folder / "photos", str(folder / "encoder"), folder / "archive", bits=32)
    archive.sync(device="cpu")
    return archive.index, folder / "photos"


@pytest.fixture
def pictures_alone(archive_of_pictures):
    """An archive whose encoder takes no texts; a service closes what it served."""
    index, root = archive_of_pictures
    return Collection(index, name="photos", root=root)


def slide(browser, stop):
    browser.execute_script(
        "const slider = document.getElementById('bits-slider');"
        "slider.value = slider.dataset.stops.split(',').indexOf(arguments[0]);"
        "for (const kind of ['input', 'change']) slider.dispatchEvent(new Event(kind, {bubbles: true}))",
        stop,
    )


def test_a_picture_that_was_handed_over_goes_on_being_asked_for(browser, pictures_alone, tmp_path):
    save(scene(3), tmp_path / "asked.png")
    with served(pictures_alone) as address:
        browser.get(address)
        browser.find_element(By.ID, "file").send_keys(str(tmp_path / "asked.png"))
        wait(browser, lambda: "z=" in browser.current_url and shown(browser))
        assert shown(browser)[0] == "odd/3.png"
        assert browser.execute_script("return document.querySelector('.term img').naturalWidth") > 0  # what was asked
        for part, selector in (("cut", ".bars button"), ("compare", ".bits tbody tr")):
            browser.find_element(By.CSS_SELECTOR, f"#{part} summary").click()
            wait(browser, lambda selector=selector: all_of(browser, selector))
        slide(browser, "16")
        wait(browser, lambda: "bits=16" in browser.current_url)
        assert "like=" not in browser.current_url
        assert len(shown(browser)) == 12
        browser.find_element(By.CSS_SELECTOR, "[data-add=like]").click()
        wait(browser, lambda: "like=odd" in browser.current_url)
        all_of(browser, ".card [data-add=like]")[1].click()
        wait(browser, lambda: browser.current_url.count("like=") == 2)
        browser.get(browser.current_url)  # the form says all of it again
        slide(browser, "32")
        wait(browser, lambda: "bits=32" in browser.current_url)
        assert browser.current_url.count("like=") == 2
        assert "z=" in browser.current_url
        assert len(all_of(browser, ".asked img")) == 2
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_a_file_that_is_no_picture_and_what_is_not_served_are_said_on_a_page(browser, pictures_alone, tmp_path):
    (tmp_path / "bad.jpg").write_text("no picture")
    with served(pictures_alone) as address:
        browser.get(address)
        browser.find_element(By.ID, "file").send_keys(str(tmp_path / "bad.jpg"))
        wait(browser, lambda: browser.current_url.endswith("/image") and all_of(browser, "[role=alert]"))
        said = browser.find_element(By.CSS_SELECTOR, "[role=alert]").text
        assert said.startswith("the picture: not an image")
        assert said.endswith("Choose another picture, such as a JPEG or a PNG.")
        browser.get(address.replace("photos", "nothing"))
        assert "there is no collection" in browser.find_element(By.CSS_SELECTOR, "[role=alert]").text
        browser.get(f"{address}?like=ODD/1")
        wait(browser, lambda: shown(browser) == ["odd/1.png", "odd/11.png"])
        assert "have it in their names" in browser.find_element(By.CSS_SELECTOR, "[role=alert]").text
        browser.get_log("browser")  # of the answers 400 and 404


def test_duplicates_are_decided_by_the_keyboard_and_decisions_taken_back(browser, tmp_path):
    pytest.importorskip("cv2")
    root = tmp_path / "photos"
    for seed in range(12):
        save(scene(seed), root / f"{seed}.png")
        for name in ("half", "jpeg") if seed < 3 else ():
            save(EDITS[name](scene(seed)), root / f"{seed}-{name}.jpg")
    write_pixel_encoder(tmp_path / "encoder")
    archive = Archive.create(root, str(tmp_path / "encoder"), tmp_path / "archive", bits=32)
    archive.sync(device="cpu")
    find(archive)

    def groups():
        script = "return [...document.querySelectorAll('.confirmed h2')].map(one => one.innerText.split('\\n')[0])"
        return browser.execute_script(script)

    def said():
        return browser.execute_script("return document.getElementById('said').innerText")

    def focused():
        return browser.execute_script("return document.activeElement.getAttribute('aria-label') || ''")

    collection = Collection(archive.index, name="photos", root=root, writable=True)
    with served(collection) as address:
        browser.get(f"{address}/duplicates")
        assert groups() == ["3 pictures, the same"] * 3
        wait(browser, lambda: browser.execute_script("return document.querySelector('.card img').naturalWidth") > 0)
        for name in ("light", "dark"):
            dark(browser, name == "dark")
            keep(browser, f"review-{name}")
        (first, *_) = all_of(browser, ".confirmed button")
        assert first.get_attribute("aria-label") == "Keep 0.png: the others are its duplicates"
        browser.execute_script("arguments[0].focus()", first)
        browser.switch_to.active_element.send_keys(Keys.ENTER)
        wait(browser, lambda: said() == "0.png is kept; the others are its duplicates.")
        assert len(groups()) == 2
        wait(browser, lambda: focused().startswith("Keep 1.png"))  # the next group
        (wrong,) = all_of(browser, "[aria-label='1-half.jpg is not a duplicate']")
        wrong.click()
        wait(browser, lambda: said() == "1-half.jpg is no duplicate.")
        assert groups() == ["2 pictures, the same", "3 pictures, the same"]
        assert len(all_of(browser, ".decided li")) == 2
        browser.get(browser.current_url)  # remembered
        assert groups() == ["2 pictures, the same", "3 pictures, the same"]
        for name in ("light", "dark"):
            dark(browser, name == "dark")
            browser.execute_script("document.querySelector('.decided').scrollIntoView()")
            keep(browser, f"decided-{name}")
        with phone(browser):
            browser.get(browser.current_url)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
            keep(browser, "review-phone")
            browser.execute_script("document.querySelector('.decided').scrollIntoView()")
            keep(browser, "decided-phone")
        dark(browser, False)
        for left in (1, 0):
            all_of(browser, ".decided button")[0].send_keys(Keys.SPACE)
            wait(browser, lambda left=left: len(all_of(browser, ".decided li")) == left)
        assert groups() == ["3 pictures, the same"] * 3
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    collection.close()
    assert len(list(root.iterdir())) == 18


def test_what_goes_wrong_is_said_on_the_page(browser, address):
    browser.get(f"{address}?like=nobody")
    assert "not in the index" in browser.find_element(By.CSS_SELECTOR, "[role=alert]").text
    browser.get(f"{address}?z=AAAA")
    assert "was cut or changed" in browser.find_element(By.CSS_SELECTOR, "[role=alert]").text
