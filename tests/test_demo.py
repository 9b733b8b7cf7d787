"The main job: everything in it runs, can be stopped, and says the same thing again."
import json, os, signal, subprocess, sys, time

import pytest

import srflow_nb.demo as demo
from srflow_nb.core import InputError

SMALL = demo.DemoPreset(pairs=20, size=96, gaussians=2000, steps=4, photo=2, clips=(6, 6, 6), subjects=(2, 2, 2))


@pytest.fixture(scope='module')
def job(tmp_path_factory):
    out = tmp_path_factory.mktemp('demo')/'job'
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(demo.PRESETS, 'quick', SMALL)
        report = demo.run_demo(out, 'quick', seed=0)
    return out, report


def test_report_json_has_the_promised_form(job):
    out, report = job
    found = json.loads((out/'report.json').read_text())
    assert found == json.loads(json.dumps(report))
    for part in (found['flow'], found['photo']):
        assert set(part['models']) == {'zero', 'dis', 'deepflow', 'srflownet-generic', 'srflownet-srflow'}
        for m in part['models'].values(): assert {'epe', 'px1_outliers', 'px3_outliers'} <= set(m)
    for m in found['microexpr']['estimators'].values(): assert 0 <= m['uf1'] <= 1 and 0 <= m['uar'] <= 1
    assert found['seed'] == 0 and 'torch' in found['versions'] and found['seconds']['total'] > 0


def test_report_html_is_complete_and_self_contained(job):
    page = (job[0]/'report.html').read_text()
    for heading in ('People', 'True flow', 'Training', 'Flow on people never seen', 'Where the errors are', 'On a photograph', 'Micro-expressions', 'Time and versions'):
        assert f'<h2>{heading}</h2>' in page
    assert page.count('<img') > 20 and 'src="http' not in page and '<link' not in page
    assert all(src.startswith('data:') for src in page.split('src="')[1:])


def test_started_again_it_reads_what_is_done(job, monkeypatch):
    out, report = job
    monkeypatch.setitem(demo.PRESETS, 'quick', SMALL)
    said = []
    again = demo.run_demo(out, 'quick', seed=0, log=said.append)
    assert json.dumps(again) == json.dumps(report)
    assert said and all('already done' in s for s in said)


def test_another_seed_in_the_same_folder_is_refused(job, monkeypatch):
    monkeypatch.setitem(demo.PRESETS, 'quick', SMALL)
    with pytest.raises(InputError, match='seed=0, now 1'): demo.run_demo(job[0], 'quick', seed=1)


def test_killed_and_started_again_it_gives_the_same_numbers(job, tmp_path):
    code = ('import srflow_nb.demo as d, sys; from pathlib import Path\n'
            f'd.PRESETS["quick"] = d.{SMALL!r}\n'
            f'd.run_demo({str(tmp_path/"job")!r}, "quick", seed=0)')
    run = subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.time() + 200
    while not (tmp_path/'job/stages/data.json').exists() and run.poll() is None and time.time() < deadline: time.sleep(.05)
    os.killpg(run.pid, signal.SIGKILL); run.wait()
    assert not (tmp_path/'job/report.json').exists(), 'the job ended before it could be killed'
    subprocess.run([sys.executable, '-c', code], check=True, stderr=subprocess.DEVNULL)
    a, b = (json.loads((d/'report.json').read_text()) for d in (job[0], tmp_path/'job'))
    for part in ('flow', 'photo'):
        for name, m in a[part]['models'].items():
            assert {k: v for k, v in m.items() if k != 'seconds'} == {k: v for k, v in b[part]['models'][name].items() if k != 'seconds'}
    assert {n: (m['uf1'], m['uar']) for n, m in a['microexpr']['estimators'].items()} == {n: (m['uf1'], m['uar']) for n, m in b['microexpr']['estimators'].items()}
