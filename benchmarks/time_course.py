"""Measure what a newcomer waits for: the installation, each notebook, the flow of two images from the command line.

    python benchmarks/time_course.py [--setup]

Writes benchmarks/results/course.json; with --setup also setup.json (a fresh clone and `make setup` in it).
"""
import argparse, datetime, json, os, platform, subprocess, sys, tempfile, time
from pathlib import Path

import torch

from srflow_nb.core import atomic_write, versions

ROOT = Path(__file__).resolve().parent.parent


def machine() -> str:  # processor, cores, system
    "Say in words what the numbers were measured on."
    info = Path('/proc/cpuinfo')
    names = [line.split(':')[1].strip() for line in info.read_text().splitlines() if line.startswith('model name')] if info.exists() else []
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {platform.system()}"


def seconds(
    command: list,     # program and arguments
    cwd: Path=ROOT,    # where it runs
) -> float:            # wall time [s]; raises CalledProcessError when it fails
    "Run a command and time it."
    start = time.perf_counter()
    subprocess.run([str(c) for c in command], cwd=cwd, check=True)
    return round(time.perf_counter() - start, 1)


def time_notebooks() -> dict:  # name -> wall time [s]
    "Run each notebook of the course, one after the other, as the tests do."
    nbdev_test = Path(sys.executable).with_name('nbdev-test')
    return {p.stem: seconds([nbdev_test, p, '--n-workers', 0]) for p in sorted(ROOT.glob('nbs/[0-9]*.ipynb'))}


def time_flow_command() -> float:  # wall time [s], Python's start included
    "Flow between two frames of 512 by 512 pixels, by the command."
    from skimage.data import astronaut
    from srflow_nb.flowio import write_image
    with tempfile.TemporaryDirectory() as d:
        frame = torch.tensor(astronaut()).permute(2, 0, 1)/255
        write_image(f'{d}/a.png', frame)
        write_image(f'{d}/b.png', frame.roll((1, 2), (1, 2)))
        return seconds([Path(sys.executable).with_name('srflow'), 'flow', f'{d}/a.png', f'{d}/b.png', '--out', f'{d}/f.flo'])


def time_setup() -> float:  # wall time [s]
    "Clone the project into an empty folder and set it up there."
    with tempfile.TemporaryDirectory() as d:
        subprocess.run(['git', 'clone', '--quiet', ROOT, f'{d}/clone'], check=True)
        env_free = ['env', '-u', 'VIRTUAL_ENV', 'make', '--silent', 'setup']
        return seconds(env_free, Path(d)/'clone')


def save(
    name: str,         # file name without suffix
    result: dict,      # what was measured
):
    "Write a result with the machine, versions and date behind it."
    result |= dict(machine=machine(), versions=versions(), date=datetime.date.today().isoformat())
    with atomic_write(ROOT/f'benchmarks/results/{name}.json', 'w') as f: f.write(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
    arg = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arg.add_argument('--setup', action='store_true', help="also time the installation (downloads packages)")
    if arg.parse_args().setup: save('setup', dict(seconds=time_setup()))
    save('course', dict(seconds=time_notebooks(), flow_command_seconds=time_flow_command()))
