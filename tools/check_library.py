"""Check that the library is what the notebooks export, and that the notebooks are clean. Changes nothing.

    python tools/check_library.py
"""
import filecmp, json, shutil, subprocess, sys, tempfile
from pathlib import Path

from nbdev.clean import clean_nb

ROOT = Path(__file__).resolve().parent.parent


def export_into(
    folder: Path,    # an empty folder
) -> Path:           # the library that the notebooks export there
    "Export the notebooks into a copy of the project that holds no generated file."
    shutil.copy(ROOT/'pyproject.toml', folder)
    (folder/'nbs').mkdir()
    for nb in ROOT.glob('nbs/*.ipynb'): shutil.copy(nb, folder/'nbs')
    (folder/'srflow_nb').mkdir()
    shutil.copy(ROOT/'srflow_nb/__init__.py', folder/'srflow_nb')
    subprocess.run([sys.executable, '-c', 'from nbdev.doclinks import nbdev_export; nbdev_export.__wrapped__()'], cwd=folder, check=True)
    return folder/'srflow_nb'


def out_of_step() -> list[str]:  # one line for each file that differs
    "Modules that are not what the notebooks export."
    with tempfile.TemporaryDirectory() as d:
        new, old = export_into(Path(d)), ROOT/'srflow_nb'
        names = sorted({p.name for p in [*new.glob('*.py'), *old.glob('*.py')]})
        res = []
        for n in names:
            if not (new/n).exists(): res.append(f"srflow_nb/{n}: no notebook exports it; remove it")
            elif not (old/n).exists(): res.append(f"srflow_nb/{n}: missing; run `make export`")
            elif not filecmp.cmp(new/n, old/n, shallow=False): res.append(f"srflow_nb/{n}: not what its notebook exports; run `make export`")
        return res


def unclean() -> list[str]:  # one line for each notebook that cleaning would change
    "Notebooks with execution counts or metadata that change at every run."
    res = []
    for p in sorted(ROOT.glob('nbs/*.ipynb')):
        nb = json.loads(p.read_text(encoding='utf-8'))
        before = json.dumps(nb, sort_keys=True)
        clean_nb(nb)
        if json.dumps(nb, sort_keys=True) != before: res.append(f"nbs/{p.name}: not clean; run `make export`")
    return res


if __name__ == '__main__':
    bad = out_of_step() + unclean()
    print(*bad, sep='\n', end='\n' if bad else '')
    if bad: sys.exit(f"library: {len(bad)} file(s) to mend")
    print(f"library: {len(list(ROOT.glob('nbs/*.ipynb')))} notebooks are clean and in step with srflow_nb/")
