"""The checks that `make test` runs before pytest do see what they are there for."""
import importlib.util, shutil

import pytest


def load(root, name):
    spec = importlib.util.spec_from_file_location(name, root/f'tools/{name}.py')
    mod = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mod)
    return mod


@pytest.fixture
def small(root, tmp_path):
    "A project with one notebook and its module, in step."
    for name in ['pyproject.toml', '_quarto.yml', 'nbs/00_core.ipynb', 'srflow_nb/__init__.py']:
        (tmp_path/name).parent.mkdir(exist_ok=True)
        shutil.copy(root/name, tmp_path/name)
    return tmp_path


@pytest.fixture
def library(root, small, monkeypatch):
    "tools/check_library.py looking at the small project."
    mod = load(root, 'check_library')
    monkeypatch.setattr(mod, 'ROOT', small)
    (small/'once').mkdir()
    for p in mod.export_into(small/'once').glob('*.py'): shutil.copy(p, small/'srflow_nb')
    return mod


def test_a_library_in_step_passes(library): assert library.out_of_step() == [] and library.unclean() == []


def test_an_edited_module_is_seen(library, small):
    with open(small/'srflow_nb/core.py', 'a') as f: f.write('# edited by hand\n')
    assert [line.split(':')[0] for line in library.out_of_step()] == ['srflow_nb/core.py']


def test_a_missing_and_a_stray_module_are_seen(library, small):
    (small/'srflow_nb/core.py').rename(small/'srflow_nb/stray.py')
    assert [line.split(';')[0] for line in library.out_of_step()] == ['srflow_nb/core.py: missing', 'srflow_nb/stray.py: no notebook exports it']


def test_a_notebook_with_execution_counts_is_seen(library, small):
    nb = small/'nbs/00_core.ipynb'
    nb.write_text(nb.read_text(encoding='utf-8').replace('"execution_count": null', '"execution_count": 7', 1), encoding='utf-8')
    assert len(library.unclean()) == 1


def test_a_sidebar_out_of_step_is_seen(root, small, monkeypatch):
    docs = load(root, 'build_docs')
    monkeypatch.setattr(docs, 'ROOT', small)
    shutil.copy(small/'nbs/00_core.ipynb', small/'nbs/99_new.ipynb')
    bad = docs.sidebar_problems()
    assert 'nbs/99_new.ipynb: not in the sidebar of _quarto.yml' in bad
    assert any('lists index.ipynb, which is not in nbs/' in line for line in bad) and not any('00_core' in line for line in bad)
