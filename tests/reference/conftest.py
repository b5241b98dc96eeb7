"""The notebooks here write their results into a temporary copy of the sources, never over the results of a real run."""

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from renew_reference import copy_sources

_folder = tempfile.TemporaryDirectory()
copy_sources(Path(_folder.name))
# The kernels that nbval starts inherit these.
os.environ |= {"STITCH_ROOT": _folder.name, "TQDM_DISABLE": "1", "PYTHONHASHSEED": "0", "HF_HUB_OFFLINE": "1"}


def pytest_unconfigure():
    _folder.cleanup()
