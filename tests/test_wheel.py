"""The wheel works for somebody who has only the wheel."""
import shutil, subprocess, sys, zipfile

import pytest

import srflow_nb


@pytest.fixture(scope='module')
def wheel(root, tmp_path_factory):
    "The wheel, built from what the project tracks and nothing else, without a network."
    src, out = tmp_path_factory.mktemp('src'), tmp_path_factory.mktemp('dist')
    for name in ['pyproject.toml', 'README.md', 'LICENSE', 'NOTICE']: shutil.copy(root/name, src)
    shutil.copytree(root/'srflow_nb', src/'srflow_nb', ignore=shutil.ignore_patterns('__pycache__', '.*'))
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-build-isolation', '--no-deps', '--no-index', '-w', out, src], check=True)
    return next(out.glob('*.whl'))


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    "A folder with the wheel's content installed."
    target = tmp_path_factory.mktemp('site')
    subprocess.run([sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index', '--target', target, wheel], check=True)
    return target


def run(installed, cwd, *args):
    "Run Python with the installed wheel first on the path, outside the project."
    code = f"import sys; sys.path.insert(0, {str(installed)!r})\n" + args[0]
    return subprocess.run([sys.executable, '-I', '-c', code, *args[1:]], cwd=cwd, capture_output=True, text=True)


def test_wheel_carries_library_data_and_licence(root, wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    want = {f'srflow_nb/{p.name}' for p in (root/'srflow_nb').glob('*.py')}
    want |= {f'srflow_nb/data/{p.name}' for p in (root/'srflow_nb/data').iterdir() if p.is_file() and p.name[0] != '.'}
    info = f'srflow_nb-{srflow_nb.__version__}.dist-info'
    want |= {f'{info}/entry_points.txt', f'{info}/licenses/LICENSE', f'{info}/licenses/NOTICE'}
    assert 'srflow_nb/data/head.npz' in want, "srflow_nb/data/head.npz is missing: run tools/build_head.py"
    assert want <= names, f"missing from the wheel: {sorted(want - names)}"
    strange = [n for n in names if not n.startswith(('srflow_nb/', info))]
    assert not strange, f"does not belong into the wheel: {strange}"


def test_wheel_names_the_command(wheel):
    text = zipfile.ZipFile(wheel).read(f'srflow_nb-{srflow_nb.__version__}.dist-info/entry_points.txt').decode()
    assert 'srflow = srflow_nb.cli:main' in text


def test_wheel_is_small(wheel):
    assert wheel.stat().st_size < 8e6, f"{wheel.name} has {wheel.stat().st_size/1e6:.1f} MB; a wheel that ships a head and small weights needs less"


def test_wheel_works_outside_the_project(installed, tmp_path):
    r = run(installed, tmp_path, "import srflow_nb; from srflow_nb.head import Head\n"
            "h = Head.load(); print(srflow_nb.__file__); print(len(h.unit_names))")
    assert r.returncode == 0, r.stderr
    where, units = r.stdout.split()
    assert where.startswith(str(installed)) and int(units) == 52


def test_command_works_outside_the_project(installed, tmp_path):
    r = run(installed, tmp_path, "from srflow_nb.cli import main; sys.argv[0] = 'srflow'; main()", '--help')
    assert r.returncode == 0, r.stderr
    for name in ['info', 'demo', 'render', 'make-data', 'train', 'evaluate', 'flow']: assert name in r.stdout, f"srflow --help does not list {name}"
