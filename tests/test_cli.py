"Every command does what its help says, and a user's mistake gets one clear line and exit code 2."
import contextlib, io, json, subprocess, sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from srflow_nb.cli import main
from srflow_nb.dataset import make_dataset
from srflow_nb.flowio import read_flow
from srflow_nb.me_synthetic import synthetic_composite

COMMANDS = ['info', 'render', 'make-data', 'verify', 'train', 'evaluate', 'flow', 'microexpr', 'demo']


def srflow(*args):
    "Run the command in this process (loading PyTorch anew each time would take minutes)."
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, 'argv', ['srflow', *map(str, args)])
        try: main(); code = 0
        except SystemExit as e: code = e.code or 0
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def check_mistake(p, *words):
    assert p.returncode == 2, p.stdout + p.stderr
    assert len(p.stderr.strip().splitlines()) == 1, f'more than one line:\n{p.stderr}'
    for w in words: assert str(w) in p.stderr, p.stderr


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('cli')/'set'
    make_dataset(root, pairs=20, width=96, height=96, seed=0, gaussians=2000, progress=False)
    return root


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    d = tmp_path_factory.mktemp('images')
    texture = cv2.resize(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8), (96, 80), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(d/'a.png'), texture); cv2.imwrite(str(d/'b.png'), np.roll(texture, 2, 1))
    cv2.imwrite(str(d/'small.png'), texture[:40]); (d/'text.png').write_text('not an image')
    return d


@pytest.mark.parametrize('command', COMMANDS)
def test_help_explains_each_command(command):
    p = srflow(command, '--help')
    assert p.returncode == 0 and 'Usage' in p.stdout
    if command not in ('info', 'verify'): assert '--seed' in p.stdout
    if command != 'help': assert '--json' in p.stdout


def test_help_lists_all_commands():
    p = srflow('--help')
    assert all(c in p.stdout for c in COMMANDS)


def test_installed_command_is_this_one():
    exe = Path(sys.executable).parent/'srflow'
    assert exe.exists(), 'pip install -e . has not made the srflow command'
    p = subprocess.run([exe, 'render', '--expression', 'jawOpne=.4', '--out', 'x.png'], capture_output=True, text=True)
    check_mistake(p, 'jawOpne', 'jawOpen')


def test_help_answers_without_loading_pytorch():
    code = "import sys; sys.argv = ['srflow', '--help']\ntry:\n    from srflow_nb.cli import main; main()\nexcept SystemExit: pass\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True).returncode == 0


def test_info_reports_versions_and_device(tmp_path):
    assert srflow('info', '--warm-up', '--json', tmp_path/'i.json').returncode == 0
    result = json.loads((tmp_path/'i.json').read_text())
    assert result['torch'].startswith('2') and result['warm_up_seconds'] > 0 and result['device'] in ('cpu', 'cuda')


def test_render_writes_a_face_and_people_differ(tmp_path):
    for i in (1, 2):
        p = srflow('render', '--identity', i, '--expression', 'jawOpen=.4,mouthSmileLeft=.6', '--size', '110x160', '--gaussians', 5000, '--out', tmp_path/f'{i}.png')
        assert p.returncode == 0, p.stderr
    a, b = (cv2.imread(str(tmp_path/f'{i}.png')) for i in (1, 2))
    assert a.shape == (160, 110, 3) and a.std() > 10 and (a != b).any()


def test_make_data_then_verify_then_damage(tmp_path):
    out = tmp_path/'set'
    args = ['make-data', '--out', out, '--pairs', 4, '--size', '64x64', '--gaussians', 500, '--workers', 1]
    assert srflow(*args).returncode == 0
    check_mistake(srflow(*args), '--resume')
    assert srflow(*args, '--resume').returncode == 0
    assert srflow('verify', out).returncode == 0
    next(out.rglob('*.flo')).unlink()
    p = srflow('verify', out, '--json', tmp_path/'v.json')
    assert p.returncode == 1 and '.flo: missing' in p.stdout
    assert json.loads((tmp_path/'v.json').read_text())['problems'] == 1


def test_train_then_evaluate_the_trained_folder(tmp_path, data):
    p = srflow('train', '--data', data, '--out', tmp_path/'run', '--steps', 3, '--json', tmp_path/'t.json')
    assert p.returncode == 0, p.stderr
    assert json.loads((tmp_path/'t.json').read_text())['steps'] == 3
    p = srflow('evaluate', '--data', data, '--models', f'zero,dis,{tmp_path/"run"}', '--json', tmp_path/'e.json')
    assert p.returncode == 0, p.stderr
    models = json.loads((tmp_path/'e.json').read_text())['models']
    assert set(models) == {'zero', 'dis', str(tmp_path/'run')} and all(m['epe'] >= 0 for m in models.values())


def test_flow_of_a_shifted_picture_is_the_shift(tmp_path, images):
    p = srflow('flow', images/'a.png', images/'b.png', '--out', tmp_path/'x.flo', '--viz', tmp_path/'x.png', '--model', 'deepflow', '--json', tmp_path/'x.json')
    assert p.returncode == 0, p.stderr
    flow = read_flow(tmp_path/'x.flo')
    assert abs(float(flow[0, 10:-10, 10:-10].median()) - 2) < .1 and abs(float(flow[1, 10:-10, 10:-10].median())) < .1
    assert cv2.imread(str(tmp_path/'x.png')).shape[:2] == (80, 96)
    assert json.loads((tmp_path/'x.json').read_text())['width'] == 96


def test_flow_uses_the_shipped_network_by_default(tmp_path, images):
    p = srflow('flow', images/'a.png', images/'b.png', '--out', tmp_path/'x.flo', '--json', tmp_path/'x.json')
    assert p.returncode == 0, p.stderr
    assert json.loads((tmp_path/'x.json').read_text())['model'] == 'srflownet-tiny'


def test_microexpr_recognises_the_clips_of_a_folder(tmp_path):
    synthetic_composite(tmp_path/'clips', seed=0, subjects=(2, 2, 2), clips=(5, 5, 5), frames=3, scale=.5, gaussians=3000, workers=1, progress=False)
    p = srflow('microexpr', '--data', tmp_path/'clips', '--flow', 'zero,dis', '--json', tmp_path/'m.json')
    assert p.returncode == 0, p.stderr
    result = json.loads((tmp_path/'m.json').read_text())
    assert result['clips'] == 15 and set(result['estimators']) == {'zero', 'dis'}
    assert all(0 <= r['uf1'] <= 1 and 0 <= r['uar'] <= 1 for r in result['estimators'].values())
    (tmp_path/'clips/synthetic.json').unlink()         # now it claims to be the real composite, whose counts are known
    check_mistake(srflow('microexpr', '--data', tmp_path/'clips', '--flow', 'dis'), 'not the published composite', 'smic negative')
    assert srflow('microexpr', '--data', tmp_path/'clips', '--flow', 'dis', '--no-check-counts').returncode == 0


def test_mistakes_with_images(tmp_path, images):
    out = tmp_path/'x.flo'
    check_mistake(srflow('flow', images/'none.png', images/'b.png', '--out', out), 'none.png')
    check_mistake(srflow('flow', images/'a.png', images/'small.png', '--out', out), 'a.png is 96x80', 'small.png is 96x40')
    check_mistake(srflow('flow', images/'a.png', images/'text.png', '--out', out), 'text.png')
    check_mistake(srflow('flow', images/'a.png', images/'b.png', '--out', tmp_path/'x.doc', '--model', 'dis'), 'x.doc')
    check_mistake(srflow('flow', images/'a.png', images/'b.png', '--out', out, '--model', 'deepflo'), 'deepflow')
    assert not list(tmp_path.iterdir()), 'a mistake left a file behind'


def test_mistakes_with_names_and_numbers(tmp_path, data):
    check_mistake(srflow('render', '--expression', 'jawOpne=.4', '--out', tmp_path/'x.png'), 'jawOpne', 'jawOpen')
    check_mistake(srflow('render', '--expression', 'jawOpen=wide', '--out', tmp_path/'x.png'), 'jawOpen')
    check_mistake(srflow('render', '--size', '550', '--out', tmp_path/'x.png'), 'WIDTHxHEIGHT')
    check_mistake(srflow('train', '--data', data, '--out', tmp_path/'r', '--preset', 'quik'), 'quick')
    check_mistake(srflow('train', '--data', data, '--out', tmp_path/'r', '--model', 'tinny'), 'tiny')
    check_mistake(srflow('train', '--data', data, '--out', tmp_path/'r', '--init', tmp_path/'nothing'), 'nothing')
    check_mistake(srflow('demo', '--out', tmp_path/'d', '--preset', 'quik'), 'quick')
    check_mistake(srflow('microexpr', '--flow', 'dsi', '--out', tmp_path/'m'), 'dis')


def test_mistakes_with_folders(tmp_path, data):
    for command in (['evaluate', '--data'], ['train', '--out', tmp_path/'r', '--data'], ['verify']):
        check_mistake(srflow(*command, tmp_path), tmp_path, 'dataset.json is missing')
        check_mistake(srflow(*command, tmp_path/'none'), 'no such folder')
    check_mistake(srflow('microexpr', '--data', tmp_path/'none'), tmp_path/'none')
    check_mistake(srflow('make-data', '--out', data/'dataset.json', '--pairs', 2), 'is a file')
