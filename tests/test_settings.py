"""settings.ini says what pyproject.toml says, and the package says the same."""
import ast, configparser, json, re, sys
from importlib.metadata import packages_distributions

import pytest

import srflow_nb

try: import tomllib
except ImportError: import tomli as tomllib

REQUIREMENTS = {'requirements': None, 'dev_requirements': 'dev', 'notebooks_requirements': 'notebooks', 'dask_requirements': 'dask',
                'web_requirements': 'web', 'onnx_requirements': 'onnx', 'tensorboard_requirements': 'tensorboard', 'bench_requirements': 'bench'}


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


def imported(src):
    "Top names of every package that a source imports, wherever it does."
    src = re.sub(r'^\s*[%!].*$', '', src, flags=re.M)
    for n in ast.walk(ast.parse(src)):
        if isinstance(n, ast.Import): yield from (a.name.split('.')[0] for a in n.names)
        elif isinstance(n, ast.ImportFrom) and not n.level: yield n.module.split('.')[0]


def normal(name): return re.split(r'[<>=\[; ]', name)[0].lower().replace('_', '-')


@pytest.fixture(scope='module')
def imports(root):
    "Packages that the library imports, and those that any notebook imports."
    library = {m for p in (root/'srflow_nb').glob('*.py') for m in imported(p.read_text(encoding='utf-8'))}
    cells = [''.join(c['source']) for p in root.glob('nbs/*.ipynb') for c in json.loads(p.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']
    return library, library | {m for c in cells for m in imported(c)}


def distributions(modules):
    "Names of the installed distributions that provide these modules."
    have = packages_distributions()
    return {normal(d) for m in modules for d in have.get(m, [])}


def test_every_import_of_the_library_is_declared(toml, imports):
    own, declared = set(sys.stdlib_module_names) | {'srflow_nb'}, {normal(d) for d in toml['project']['dependencies']}
    extras = {normal(d) for e in toml['project']['optional-dependencies'].values() for d in e} | {'distributed'}
    bad = [m for m in imports[0] - own if not distributions({m}) & (declared | extras)]
    assert not bad, f"srflow_nb imports what pyproject.toml does not declare: {sorted(bad)}"


def test_every_dependency_is_used(toml, imports):
    brings = {'gsplat': 'packaging', 'plotly': 'anywidget', 'pandas': 'openpyxl'}  # what these need and do not declare
    used = distributions(imports[1]) | {v for k, v in brings.items() if k in imports[1]}
    bad = [d for d in toml['project']['dependencies'] if normal(d) not in used]
    assert not bad, f"pyproject.toml declares what neither the library nor a notebook imports: {bad}"


def test_an_old_nbdev_would_not_be_fooled(root):
    "A reader of settings.ini learns that nbdev 3 does not read it."
    assert 'nbdev 3 reads pyproject.toml alone' in (root/'settings.ini').read_text(encoding='utf-8')


def test_the_package_has_the_version_of_its_changelog(root):
    log = (root/'CHANGELOG.md').read_text(encoding='utf-8')
    assert '## [Unreleased]' in log or f'## [{srflow_nb.__version__}]' in log
