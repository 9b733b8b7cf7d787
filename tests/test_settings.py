"""settings.ini says what pyproject.toml says, and the package says the same."""
import configparser

import pytest

import srflow_nb

try: import tomllib
except ImportError: import tomli as tomllib

REQUIREMENTS = {'requirements': None, 'dev_requirements': 'dev', 'notebooks_requirements': 'notebooks', 'dask_requirements': 'dask'}


@pytest.fixture(scope='module')
def toml(root): return tomllib.loads((root/'pyproject.toml').read_text(encoding='utf-8'))


@pytest.fixture(scope='module')
def ini(root):
    cfg = configparser.ConfigParser(interpolation=None)
    cfg.read(root/'settings.ini', encoding='utf-8')
    return dict(cfg['DEFAULT'])


def test_settings_ini_mirrors_the_project(toml, ini):
    p = toml['project']
    want = dict(lib_name=p['name'], version=srflow_nb.__version__, description=p['description'], license=p['license'],
                author=p['authors'][0]['name'], min_python=p['requires-python'].lstrip('>='), keywords=' '.join(p['keywords']),
                console_scripts=' '.join(f'{k}={v}' for k, v in p['scripts'].items()))
    assert {k: ini.get(k) for k in want} == want


def test_settings_ini_mirrors_nbdev(toml, ini):
    want = {k: str(v) for k, v in toml['tool']['nbdev'].items()}
    assert {k: ini.get(k) for k in want} == want


@pytest.mark.parametrize('key,extra', REQUIREMENTS.items())
def test_settings_ini_mirrors_the_requirements(toml, ini, key, extra):
    p = toml['project']
    want = p['dependencies'] if extra is None else p['optional-dependencies'][extra]
    assert ini[key].split() == want


def test_settings_ini_mirrors_every_extra(toml):
    assert set(toml['project']['optional-dependencies']) == {v for v in REQUIREMENTS.values() if v}


def test_every_dependency_gives_its_reason(root):
    text = (root/'pyproject.toml').read_text(encoding='utf-8')
    block = text[text.index('dependencies = ['):text.index('[project.scripts]')]
    bad = [line.strip() for line in block.splitlines() if line.startswith('    "') and '#' not in line]
    assert not bad, f"pyproject.toml: dependencies without a one-line reason: {bad}"


def test_an_old_nbdev_would_not_be_fooled(root):
    "A reader of settings.ini learns that nbdev 3 does not read it."
    assert 'nbdev 3 reads pyproject.toml alone' in (root/'settings.ini').read_text(encoding='utf-8')


def test_the_package_has_the_version_of_its_changelog(root):
    log = (root/'CHANGELOG.md').read_text(encoding='utf-8')
    assert '## [Unreleased]' in log or f'## [{srflow_nb.__version__}]' in log
