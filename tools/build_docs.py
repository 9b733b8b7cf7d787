"""Build the documentation from the notebooks: HTML where Quarto is installed, else its processing alone.

    python tools/build_docs.py [--process-only] [--workers N]
"""
import argparse, json, os, shutil, subprocess, sys
from pathlib import Path

# nbdev tells the reader of a log that an import cell also sets an option; ours do so on purpose.
os.environ['PYTHONWARNINGS'] = 'ignore:Found cells containing imports:UserWarning'

import yaml
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs

ROOT = Path(__file__).resolve().parent.parent
PLOTLY = 'plotly.min.js'


def notebooks() -> list[Path]:  # every page of the documentation
    "The notebooks that become pages."
    return sorted(p for p in ROOT.glob('nbs/*.ipynb') if p.name[0] not in '_.')


def sidebar_problems() -> list[str]:  # one line for each page that is missing on either side
    "Notebooks that the sidebar forgets, and entries of the sidebar without a notebook."
    bar = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents']
    listed = [page for section in bar for page in section['contents']]
    have = [p.name for p in notebooks()]
    res = [f"nbs/{n}: not in the sidebar of _quarto.yml" for n in have if n not in listed]
    res += [f"_quarto.yml: the sidebar lists {n}, which is not in nbs/" for n in listed if n not in have]
    return res + [f"_quarto.yml: the sidebar lists {n} twice" for n in set(listed) if listed.count(n) > 1]


def put_plotly() -> list[str]:  # a line when pages need it and do not load it
    "Copy plotly's script out of the installed package where a page draws with it, so that it works without a network."
    if not any('Plotly.newPlot' in p.read_text(encoding='utf-8') for p in notebooks()): return []
    import plotly
    dst = ROOT/'nbs/assets'/PLOTLY
    dst.parent.mkdir(exist_ok=True)
    shutil.copy(Path(plotly.__file__).parent/'package_data'/PLOTLY, dst)
    loaded = f'assets/{PLOTLY}"></script>' in (ROOT/'_quarto.yml').read_text(encoding='utf-8')
    tag = f"""include-in-header: {{text: '<script src="assets/{PLOTLY}"></script>'}}"""
    return [] if loaded else [f"_quarto.yml: pages draw with plotly; put under format: html: {tag}"]


def process(
    workers: int,    # processes
) -> list[str]:      # one line for each page that failed
    "Run the documentation's own processing: every page is written anew into _proc."
    refresh_quarto_yml()
    try: proc = proc_nbs(n_workers=workers, force=True)
    except Exception as e:  # a cell of a page failed in a worker; the message names the notebook and shows the cell
        return [f"{e}\n(The documentation runs only cells that import something: let those do nothing else.)"]
    res = []
    for p in notebooks():
        page = proc/p.name
        if not page.exists(): res.append(f"nbs/{p.name}: the processing wrote no page")
        elif any(o.get('output_type') == 'error' for c in json.loads(page.read_text(encoding='utf-8'))['cells'] for o in c.get('outputs', [])):
            res.append(f"nbs/{p.name}: a cell shows an error")
    return res


def main():
    "Build, say what was built, exit with 1 when a page failed."
    arg = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arg.add_argument('--process-only', action='store_true', help="check the processing; write no HTML")
    arg.add_argument('--workers', type=int, default=2, help="processes")
    args = arg.parse_args()
    bad = put_plotly() + sidebar_problems() + process(args.workers)
    if bad: sys.exit('\n'.join([*bad, f"docs: {len(bad)} problem(s)"]))
    print(f"docs: {len(notebooks())} pages processed into _proc/")
    if args.process_only: return
    if not shutil.which('quarto'):
        return print("docs: HTML needs Quarto (quarto.org), which is not installed; only the processing was run")
    subprocess.run([Path(sys.executable).with_name('nbdev-docs'), '--n-workers', str(args.workers)], cwd=ROOT, check=True)
    print("docs: open _docs/index.html")


if __name__ == '__main__': main()
