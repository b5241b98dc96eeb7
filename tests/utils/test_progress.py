"""Bars are for somebody who watches: none in a pipe or a log, one at a terminal."""

import os
import pty
import subprocess
import sys
import termios

LOOP = "from stitch_utils.utils.progress import progress\nfor _ in progress(range(3), 'three'): pass"


def listened(stderr: int, **variables: str) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"} | variables
    return subprocess.Popen([sys.executable, "-c", LOOP], stderr=stderr, env=environment)


def at_a_terminal(**variables: str) -> bytes:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    assert listened(theirs, **variables).wait() == 0
    os.write(theirs, b"end")  # so that the read does not wait where nothing was written
    text = os.read(ours, 65536)
    os.close(ours), os.close(theirs)
    return text.removesuffix(b"end")


def test_nothing_is_written_into_a_pipe():
    process = listened(subprocess.PIPE)
    assert process.communicate()[1] == b""
    assert process.returncode == 0


def test_a_terminal_shows_a_bar_that_is_cleared():
    text = at_a_terminal()
    assert b"three:   0%" in text and text.endswith(b"\r")


def test_the_variable_of_tqdm_silences_it():
    assert at_a_terminal(TQDM_DISABLE="1") == b""
