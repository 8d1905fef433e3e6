"""The pictures of README and docs: the page over the demo's archive, in a real browser.

    python tools/pictures.py [--out docs/images]

Needs chromium and chromedriver (`make servers`) and selenium. Takes the demo's archive from demo-archive, where
`make demo` puts it, or makes it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")
CROVCA = (sys.executable, "-m", "crovca.cli.main")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, default=Path("demo-archive"))
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--port", default="8123")
    arguments = parser.parse_args()
    if not arguments.archive.is_dir():
        subprocess.run([*CROVCA, "demo", "--archive", str(arguments.archive)], check=True)
    served = subprocess.Popen(
        [*CROVCA, "serve", str(arguments.archive), "--port", arguments.port], stdout=subprocess.PIPE
    )
    try:
        assert served.stdout is not None
        served.stdout.readline()  # the address: it serves
        with tempfile.TemporaryDirectory() as profile:
            take(f"http://127.0.0.1:{arguments.port}", arguments.out, profile)
    finally:
        served.terminate()
        served.wait()


def take(address: str, out: Path, profile: str) -> None:
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options)

    def wait(script: str) -> None:
        WebDriverWait(browser, 120).until(lambda _: browser.execute_script(f"return {script}"))
        time.sleep(2)  # for the pictures

    try:
        browser.set_window_size(1280, 900)
        browser.get(address)
        wait("document.querySelectorAll('.map li').length > 0")
        browser.save_screenshot(str(out / "page.png"))
        item = browser.execute_script("return document.querySelectorAll('.map a')[40].getAttribute('href')")
        for _ in range(3):  # the first answers take longer
            browser.get(address + item)
            wait("document.querySelectorAll('.card').length > 0")
            browser.find_element(By.CSS_SELECTOR, "#compare summary").click()
            wait("document.querySelectorAll('.bits tbody tr').length > 0")
        browser.save_screenshot(str(out / "bits.png"))
    finally:
        browser.quit()


if __name__ == "__main__":
    main()
