"""How long does a newcomer wait: for the installation, for each notebook, for the flow of two images on the command line?

python benchmarks/time_course.py                          writes benchmarks/results/time_course.json
python benchmarks/time_course.py --quick --json FILE      three notebooks and no installation, under a minute
"""
import os

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')     # threads that wait do not spin; must be set before torch is imported

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from _common import arguments, bar, write
from skimage.data import astronaut

from srflow_nb.flowio import write_image

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = Path(sys.executable).parent


def seconds(command, cwd=ROOT):
    "Run a command and return its wall time; raises CalledProcessError when it fails."
    start = time.perf_counter()
    subprocess.run([str(c) for c in command], cwd=cwd, check=True)
    return round(time.perf_counter() - start, 1)


def time_notebooks(names):
    "Seconds of each notebook, one after the other, as the tests run them."
    return {n: seconds([PROGRAMS/'nbdev-test', ROOT/f'nbs/{n}.ipynb', '--n-workers', 0]) for n in names}


def time_flow_command():
    "Seconds of `srflow flow` on two frames of 512 by 512 pixels, start included."
    with tempfile.TemporaryDirectory() as d:
        frame = torch.tensor(astronaut()).permute(2, 0, 1)/255
        write_image(f'{d}/a.png', frame)
        write_image(f'{d}/b.png', frame.roll((1, 2), (1, 2)))
        return seconds([PROGRAMS/'srflow', 'flow', f'{d}/a.png', f'{d}/b.png', '--out', f'{d}/f.flo'])


def time_setup():
    "Seconds of `make setup` in a fresh clone of the last commit (downloads packages)."
    with tempfile.TemporaryDirectory() as d:
        subprocess.run(['git', 'clone', '--quiet', ROOT, f'{d}/clone'], check=True)
        return seconds(['env', '-u', 'VIRTUAL_ENV', 'make', '--silent', 'setup'], Path(d)/'clone')


def main():
    "Measure, print, write."
    args = arguments(__doc__.splitlines()[0])
    names = ['00_core', '10_flowio', '12_metrics'] if args.quick else [p.stem for p in sorted(ROOT.glob('nbs/[0-9]*.ipynb'))]
    times = time_notebooks(names)
    rows = [dict(notebook=n, seconds=s) for n, s in times.items()]
    write('time_course', args, rows, {'minutes to run every notebook': bar(sum(times.values())/60, 10, at_most=True)},
          seconds=times, flow_command_seconds=time_flow_command(), setup_seconds=None if args.quick else time_setup())


if __name__ == '__main__': main()
