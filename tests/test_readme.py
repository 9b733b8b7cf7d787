"""README.md is the index notebook, and what it promises is there."""
import importlib.util, json, os, re

import pytest


@pytest.fixture(scope='module')
def builder(root):
    spec = importlib.util.spec_from_file_location('build_readme', root/'tools/build_readme.py')
    mod = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mod)
    return mod


@pytest.fixture(scope='module')
def readme(root): return (root/'README.md').read_text(encoding='utf-8')


def test_readme_is_the_index_notebook(builder):
    assert builder.out_of_step() == []


@pytest.mark.parametrize('text,want', [
    ('[a](04_head.ipynb)', '[a](nbs/04_head.ipynb)'), ('![](images/s.webp)', '![](nbs/images/s.webp)'),
    ('[a](../LICENSE)', '[a](LICENSE)'), ('<img src="images/s.webp">', '<img src="nbs/images/s.webp">'),
    ('[a](https://arxiv.org/abs/1)', '[a](https://arxiv.org/abs/1)'), ('[a](#limits)', '[a](#limits)')])
def test_links_work_from_the_top_folder(builder, text, want):
    assert builder.relink(text) == want


def test_readme_names_the_two_commands(readme):
    assert 'make demo' in readme and 'make test' in readme


def test_every_make_target_the_readme_names_exists(root, readme):
    targets = set(re.findall(r'^([a-z-]+):', (root/'Makefile').read_text(encoding='utf-8'), flags=re.M))
    named = set(re.findall(r'`make ([a-z]+)', readme)) | set(re.findall(r'^make ([a-z]+)', readme, flags=re.M))
    assert named and named <= targets, f"README.md names targets that the Makefile lacks: {sorted(named - targets)}"


def test_every_link_of_the_readme_leads_somewhere(root, readme):
    links = re.findall(r'\]\(([^)\s#]+)', readme) + re.findall(r'(?:src|href)="([^"#]+)', readme)
    bad = sorted({link for link in links if not re.match(r'[a-z]+:', link) and not (root/link).exists()})
    assert not bad, f"README.md links to what is not there: {bad}"


def test_the_index_shows_what_the_result_files_say(root):
    "Running the index notebook again gives the outputs that are stored in it."
    from execnb.shell import CaptureShell
    from fastcore.nbio import read_nb
    path = root/'nbs/index.ipynb'
    stored = json.loads(path.read_text(encoding='utf-8'))['cells']
    nb = read_nb(path)
    here = os.getcwd()
    try:
        os.chdir(root/'nbs')
        CaptureShell(path).run_all(nb, exc_stop=True)
    finally: os.chdir(here)

    def shown(cell):
        return [''.join(o.get('data', {}).get('text/markdown', o.get('text', ''))).strip() for o in cell.get('outputs', [])]
    for old, new in zip(stored, nb.cells, strict=True):
        if old['cell_type'] == 'code': assert shown(old) == shown(new), "nbs/index.ipynb: run it again, then `make readme`"
