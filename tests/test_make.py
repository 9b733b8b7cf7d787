"""What a newcomer types: make, with a Python that may be missing, old, or interrupted while it installs."""
import os, re, subprocess, sys

import pytest


@pytest.fixture(scope='module')
def make(root):
    "A function: targets and variables -> the finished process of make, free of the make that runs the tests."
    env = {k: v for k, v in os.environ.items() if not k.startswith(('MAKE', 'MFLAGS'))}
    return lambda *args, **extra: subprocess.run(['make', '--no-print-directory', *args], cwd=root, capture_output=True, text=True, env=env | extra)


def test_make_alone_prints_each_target_with_its_line(root, make):
    r = make()
    listed = dict(re.findall(r'^  make (\w+) +(\S.*)$', r.stdout, flags=re.M))
    phony = re.search(r'^\.PHONY: (.*)', (root/'Makefile').read_text(encoding='utf-8'), flags=re.M)[1]
    assert r.returncode == 0 and set(listed) == set(re.sub(r'\$\(.*\)', '', phony).split())
    assert {'demo', 'test', 'lab', 'docs', 'clean', 'setup'} <= set(listed)


def test_missing_python_is_told_in_one_line(make, tmp_path):
    r = make('setup', f'VENV={tmp_path}/venv', 'PYTHON=no-such-python')
    assert r.returncode and "'no-such-python' not found" in r.stdout and '3.10' in r.stdout


def test_old_python_is_told_in_one_line(make, tmp_path):
    old = tmp_path/'python'
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.8.1" && exit 0\nexit 1\n')
    old.chmod(0o755)
    r = make('setup', f'VENV={tmp_path}/venv', f'PYTHON={old}')
    assert r.returncode and 'Python 3.8.1 is too old' in r.stdout and not (tmp_path/'venv').exists()


def test_failed_installation_is_not_taken_for_a_finished_one(make, tmp_path):
    "Without an index nothing can be installed: make must fail, and must try again next time."
    r = make('setup', f'VENV={tmp_path}/venv', f'PYTHON={sys.executable}', PIP_NO_INDEX='1', PIP_FIND_LINKS=str(tmp_path), PIP_NO_CACHE_DIR='1')
    assert r.returncode and (tmp_path/'venv/bin/python').exists() and not (tmp_path/'venv/.installed').exists()


def test_ci_runs_what_a_person_runs(root):
    lines = [line for line in (root/'.ci/run').read_text(encoding='utf-8').splitlines() if line and line[0] != '#']
    assert lines[-1] == 'make test' and len(lines) == 3 and os.access(root/'.ci/run', os.X_OK)


@pytest.mark.parametrize('name', ['test', 'docs', 'release'])
def test_workflows_are_read_as_meant(root, name):
    import yaml
    flow = yaml.safe_load((root/f'.github/workflows/{name}.yml').read_text(encoding='utf-8'))
    steps = [s for job in flow['jobs'].values() for s in job['steps']]
    assert True in flow and all('uses' in s or 'run' in s for s in steps)  # YAML reads the key `on` as true
    want = dict(test='.ci/run', docs='make docs', release='python -m build')[name]
    assert want in [s.get('run') for s in steps]
