"""The quickstart in a real browser: what Chromium makes of its cookie.

    python tests/browser.py target/debug/examples/quickstart

Needs Chromium, its driver and tests/requirements.txt; `tests/run` provides them. CHROMIUM and
CHROMEDRIVER name other executables than the ones found in PATH. A test that cannot run fails.
"""

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

COOKIE = "__Host-id"
DAY = 24 * 60 * 60
# Seconds. All are far longer than what they bound takes.
START = STOP = 20
PAGE = 20
TEST = 120

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


def executable(variable, *names):
    """The path of a program, from the environment or from PATH."""
    chosen = os.environ.get(variable)
    found = next(filter(None, map(shutil.which, [chosen] if chosen else names)), None)
    if found is None:
        sys.exit(f"browser.py: {chosen or ' or '.join(names)} not found; run tests/run, "
                 f"or install it and set {variable}")
    return found


def too_long(*_):
    raise TimeoutError(f"the test took longer than {TEST} seconds")


class Program:
    """The quickstart, running in a folder."""

    def __init__(self, folder, port=0):
        self.log = Path(folder, "stderr.txt")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [QUICKSTART], cwd=folder, env={**os.environ, "PORT": str(port)},
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
        try:
            if not select.select([self.process.stdout], [], [], START)[0]:
                raise AssertionError(f"the quickstart said nothing for {START} seconds")
            self.address = self.process.stdout.readline().decode().strip()
            if not re.fullmatch(r"http://localhost:[1-9][0-9]*", self.address):
                raise AssertionError(f"the first line is {self.address!r}; {self.log.read_text()}")
        except BaseException:
            self.kill()
            raise

    @property
    def port(self):
        return int(self.address.rsplit(":", 1)[1])

    def stop(self, how=signal.SIGTERM):
        """Asks it to end, waits for that, and gives back its exit status."""
        self.process.send_signal(how)
        try:
            return self.process.wait(STOP)
        finally:
            self.kill()

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


class Browser:
    """A Chromium with a profile of its own."""

    def __init__(self, profile):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in [*FLAGS, f"--user-data-dir={profile}"]:
            options.add_argument(flag)
        self.driver = webdriver.Chrome(options, Service(CHROMEDRIVER))
        self.driver.set_page_load_timeout(PAGE)
        self.driver.set_script_timeout(PAGE)

    def visits(self):
        """The number on the page."""
        text = self.driver.find_element(By.TAG_NAME, "h1").text
        return int(re.fullmatch(r"visit (\d+)", text)[1])

    def visit(self, program):
        self.driver.get(program.address + "/")
        return self.visits()

    def reload(self):
        self.driver.refresh()
        return self.visits()

    def log_out(self):
        """Presses the button, and waits for the page that follows."""
        button = self.driver.find_element(By.TAG_NAME, "button")
        page = self.driver.find_element(By.TAG_NAME, "html").id
        button.click()
        WebDriverWait(self.driver, PAGE).until(
            lambda driver: driver.find_element(By.TAG_NAME, "html").id != page
            and driver.find_elements(By.TAG_NAME, "h1"))
        return self.visits()

    def cookies(self):
        """The browser's cookies for the page, by name."""
        return {cookie["name"]: cookie for cookie in self.driver.get_cookies()}

    def script(self, text):
        return self.driver.execute_script(text)


class Quickstart(unittest.TestCase):
    def setUp(self):
        signal.signal(signal.SIGALRM, too_long)
        signal.alarm(TEST)
        self.addCleanup(signal.alarm, 0)
        # Beside the program: some packages of Chromium cannot see /tmp.
        scratch = tempfile.TemporaryDirectory(
            dir=Path(QUICKSTART).parent, prefix="browser-", ignore_cleanup_errors=True)
        self.addCleanup(scratch.cleanup)
        self.scratch = Path(scratch.name)
        self.folder = self.scratch / "program"
        self.folder.mkdir()

    def start(self, port=0):
        program = Program(self.folder, port)
        self.addCleanup(program.kill)
        return program

    def browser(self, name="first"):
        browser = Browser(self.scratch / name)
        self.addCleanup(browser.driver.quit)
        return browser

    def test_the_browser_takes_the_cookie_with_all_its_attributes(self):
        browser = self.browser()
        self.assertEqual(browser.visit(self.start()), 1)
        cookies = browser.cookies()
        self.assertEqual(list(cookies), [COOKIE])
        cookie = cookies[COOKIE]
        self.assertIs(cookie["httpOnly"], True)
        self.assertIs(cookie["secure"], True)
        self.assertEqual(cookie["sameSite"], "Lax")
        self.assertEqual(cookie["path"], "/")
        # No leading dot: it is this host's alone.
        self.assertEqual(cookie["domain"], "localhost")
        self.assertAlmostEqual(cookie["expiry"], time.time() + 31 * DAY, delta=DAY)

    def test_a_script_of_the_page_does_not_see_the_cookie(self):
        browser = self.browser()
        browser.visit(self.start())
        browser.script("document.cookie = 'other=seen'")
        self.assertEqual(browser.script("return document.cookie"), "other=seen")
        self.assertEqual(sorted(browser.cookies()), [COOKIE, "other"])

    def test_reloads_count_and_keep_the_cookie(self):
        browser = self.browser()
        browser.visit(self.start())
        cookie = browser.cookies()[COOKIE]["value"]
        self.assertEqual([browser.reload() for _ in range(3)], [2, 3, 4])
        self.assertEqual(browser.cookies()[COOKIE]["value"], cookie)

    def test_a_second_browser_has_a_count_of_its_own(self):
        program = self.start()
        first, second = self.browser("first"), self.browser("second")
        self.assertEqual([first.visit(program), first.reload()], [1, 2])
        self.assertEqual([second.visit(program), second.reload(), second.reload()], [1, 2, 3])
        self.assertEqual(first.reload(), 3)

    def test_the_count_survives_restarts_of_the_program(self):
        program, browser = self.start(), self.browser()
        browser.visit(program)
        # The browser's connection is open all the while.
        self.assertEqual(program.stop(signal.SIGTERM), 0)
        program = self.start(program.port)
        self.assertEqual(browser.visit(program), 2)
        self.assertEqual(program.stop(signal.SIGINT), 0)
        program = self.start(program.port)
        self.assertEqual(browser.visit(program), 3)
        program.stop(signal.SIGKILL)
        self.assertEqual(browser.visit(self.start()), 4)

    def test_the_count_survives_a_restart_of_the_browser(self):
        program, browser = self.start(), self.browser()
        browser.visit(program)
        browser.driver.quit()
        self.assertEqual(self.browser().visit(program), 2)

    def test_logging_out_removes_the_cookie(self):
        browser = self.browser()
        browser.visit(self.start())
        # The redirect is not followed: the next page would set a new cookie.
        browser.script("return fetch('/logout', {method: 'POST', redirect: 'manual'})"
                       ".then(response => response.type)")
        self.assertEqual(browser.cookies(), {})

    def test_after_logging_out_the_count_begins_again_under_a_new_cookie(self):
        browser = self.browser()
        browser.visit(self.start())
        browser.reload()
        old = browser.cookies()[COOKIE]["value"]
        self.assertEqual(browser.log_out(), 1)
        self.assertEqual(browser.reload(), 2)
        self.assertNotEqual(browser.cookies()[COOKIE]["value"], old)

    def test_the_cookie_of_before_a_logout_is_dead_when_it_is_put_back(self):
        program, browser = self.start(), self.browser()
        browser.visit(program)
        browser.reload()
        old = browser.cookies()[COOKIE]
        browser.log_out()
        self.put(browser, old)
        self.assertEqual([browser.reload(), browser.reload()], [1, 1])
        self.assertEqual(program.stop(), 0)
        program = self.start()
        self.put(browser, old)
        self.assertEqual(browser.visit(program), 1)

    def test_a_cookie_that_is_put_back_while_its_session_lives_counts_on(self):
        """Shows that the test above fails where the session is not ended."""
        program, browser = self.start(), self.browser()
        browser.visit(program)
        old = browser.cookies()[COOKIE]
        browser.driver.delete_all_cookies()
        self.assertEqual(browser.reload(), 1)
        self.put(browser, old)
        self.assertEqual(browser.reload(), 2)

    def put(self, browser, cookie):
        """Sets a cookie as the browser has reported it."""
        browser.driver.delete_all_cookies()
        # The driver's own call names the domain, which a `__Host-` cookie must not have.
        browser.driver.execute_cdp_cmd("Network.setCookie", {
            "url": browser.driver.current_url,
            "expires": cookie["expiry"],
            **{key: cookie[key] for key in ("name", "value", "path", "secure", "httpOnly", "sameSite")},
        })
        self.assertEqual(browser.cookies()[COOKIE], cookie)

    def test_a_wrong_port_is_an_error_that_says_so(self):
        for port in ["", "web", "65536", "-1", "80 80"]:
            with self.subTest(port=port):
                ended = subprocess.run(
                    [QUICKSTART], cwd=self.folder, env={**os.environ, "PORT": port}, timeout=START,
                    capture_output=True, text=True)
                self.assertEqual((ended.returncode, ended.stdout), (1, ""))
                self.assertRegex(ended.stderr, r"PORT.* number from 0 to 65535")
        self.assertEqual(list(self.folder.iterdir()), [])


if __name__ == "__main__":
    if len(sys.argv) < 2 or not os.access(sys.argv[1], os.X_OK):
        sys.exit("usage: browser.py <the built quickstart> [test …]")
    QUICKSTART = os.path.abspath(sys.argv.pop(1))
    CHROMIUM = executable(
        "CHROMIUM", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    CHROMEDRIVER = executable("CHROMEDRIVER", "chromedriver", "chromium.chromedriver")
    # Everything is on this host, and what is missing is not to be fetched.
    os.environ.update(NO_PROXY="*", no_proxy="*", SE_OFFLINE="true", SE_AVOID_STATS="true")
    unittest.main(verbosity=2)
