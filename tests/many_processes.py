"""`torchrun` on this machine, as a user calls it, and a process that ends in the middle of its work.

As a script, it is the command `stitch-book` in a process that kills itself at its second batch, if it is the last.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

from toy_book import PACKAGE


def torchrun(root, *command, processes=2):
    """(exit code, what each process wrote to stdout, and to stderr, by their numbers) of a command of the package."""
    logs = Path(root, "logs")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    launcher += ["--log-dir", str(logs), "--redirects", "3"]
    environment = {**os.environ, "STITCH_ROOT": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, *command], cwd=PACKAGE.parent, env=environment, capture_output=True, text=True, timeout=300
    )
    last = max(logs.glob("*"), key=lambda folder: folder.stat().st_mtime_ns)
    out, err = (
        [next(last.glob(f"attempt_0/{number}/{name}.log")).read_text() for number in range(processes)]
        for name in ("stdout", "stderr")
    )
    return done.returncode, out, err


if __name__ == "__main__":
    from stitch_utils.book.cli import main
    from stitch_utils.stitching import moments

    def cut_off(*given):
        for count, found in enumerate(whole(*given)):
            if count == 1 and os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1):
                os.kill(os.getpid(), signal.SIGKILL)
            yield found

    whole, moments.owned_residuals = moments.owned_residuals, cut_off
    sys.exit(main())
