"""What all tests share: the same threads on every machine, seeded streams, `--slow`, and a browser for pages."""
import os

os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
os.environ.setdefault('OMP_NUM_THREADS', '2')
os.environ.setdefault('NUMBA_NUM_THREADS', '2')
os.environ.setdefault('MPLBACKEND', 'agg')

import random, shutil, subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

torch.set_num_threads(2)
ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser):
    parser.addoption('--slow', action='store_true', help="also run the tests that take minutes")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if 'slow' in item.keywords and not config.getoption('--slow'): item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
        if 'cuda' in item.keywords and not torch.cuda.is_available(): item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


@pytest.fixture(autouse=True)
def seeded():
    "The global streams start at the same place for every test."
    random.seed(0); np.random.seed(0); torch.manual_seed(0)  # noqa: NPY002


@pytest.fixture(scope='session')
def root() -> Path:
    "The project's top folder."
    return ROOT


@pytest.fixture(scope='session')
def screenshot(tmp_path_factory):
    "A function (page, width, height) -> PNG path; the test is skipped where Chromium is missing."
    exe = next(filter(None, map(shutil.which, ['chromium', 'chromium-browser', 'google-chrome'])), None)
    if exe is None: pytest.skip("Chromium is missing; `make browser` installs it on Debian and Ubuntu")

    def shoot(page, width=1200, height=1600):
        out = tmp_path_factory.mktemp('screenshot')/'page.png'
        subprocess.run([exe, '--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', f'--window-size={width},{height}',
                        f'--screenshot={out}', Path(page).resolve().as_uri()], check=True, capture_output=True, timeout=120)
        return out
    return shoot
