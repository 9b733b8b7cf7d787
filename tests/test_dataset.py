"The data set keeps its promises: same bytes, whole files, clear errors."
import json, signal, subprocess, sys, time

import cv2
import numpy as np
import pytest
import torch

from srflow_nb.core import InputError
from srflow_nb.dataset import FlowDataset, Scene, DatasetConfig, make_dataset, read_manifest, sequence_plan, verify_dataset
from srflow_nb.flowio import read_flow

SMALL = dict(pairs=6, width=96, height=112, seed=3, gaussians=2000)


def digests(root): return json.loads((root/'dataset.json').read_text())['files']


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')/'set'
    make_dataset(root, **(SMALL | dict(pairs=22)), progress=False)
    return root


def test_any_number_of_workers_gives_the_same_bytes(tmp_path):
    make_dataset(tmp_path/'one', **SMALL, workers=1, progress=False)
    make_dataset(tmp_path/'two', **SMALL, workers=2, progress=False)
    assert digests(tmp_path/'one') == digests(tmp_path/'two')


def test_another_seed_gives_other_frames(tmp_path, data):
    make_dataset(tmp_path/'b', **(SMALL | dict(seed=4)), progress=False)
    a, b = digests(data), digests(tmp_path/'b')
    assert a['training/clean/person_00000/frame_0001.png'] != b['training/clean/person_00000/frame_0001.png']


def test_kill_and_resume_gives_the_bytes_of_an_unbroken_run(tmp_path):
    settings = SMALL | dict(pairs=24)
    make_dataset(tmp_path/'whole', **settings, progress=False)
    code = f'from srflow_nb.dataset import make_dataset; make_dataset({str(tmp_path/"cut")!r}, **{settings!r}, progress=False)'
    job = subprocess.Popen([sys.executable, '-c', code])
    deadline = time.time() + 60
    while not list((tmp_path/'cut').glob('*/annotations/*.json')) and job.poll() is None and time.time() < deadline: time.sleep(.01)
    job.send_signal(signal.SIGKILL); job.wait()
    assert not (tmp_path/'cut'/'dataset.json').exists(), 'the run ended before it could be killed'
    (tmp_path/'cut/training/clean/.frame_0001.png.4711.tmp.png').touch()          # a kill in the middle of a file leaves this
    make_dataset(tmp_path/'cut', **settings, resume=True, progress=False)
    assert digests(tmp_path/'cut') == digests(tmp_path/'whole')
    assert verify_dataset(tmp_path/'cut') == []


def test_people_of_the_test_split_are_never_trained_on(data):
    people = {s: {n for n, _ in FlowDataset(data, s).items} for s in ('training', 'test')}
    assert people['training'] and people['test'] and not people['training'] & people['test']


def test_layout_is_that_of_sintel(data):
    for kind, name in (('clean', 'frame_0001.png'), ('final', 'frame_0005.png'), ('flow', 'frame_0001.flo'), ('occlusions', 'frame_0004.png')):
        assert (data/'training'/kind/'person_00000'/name).is_file()
    assert not (data/'training'/'flow'/'person_00000'/'frame_0005.flo').exists(), 'the last frame has no next one'


def test_opencv_reads_our_flow(data):
    path = data/'training/flow/person_00000/frame_0001.flo'
    assert np.array_equal(cv2.readOpticalFlow(str(path)), read_flow(path).permute(1, 2, 0).numpy())


def test_background_stands_still_and_head_moves(data):
    item = FlowDataset(data)[0]
    assert (item['flow'][:, ~item['mask']] == 0).all()
    assert item['flow'][:, item['mask']].norm(dim=0).mean() > .01
    assert item['frame1'].shape == (3, 112, 96) and item['valid'].all()


def test_flow_brings_the_next_clean_frame_onto_this_one():
    c = DatasetConfig(width=200, height=240, gaussians=20_000, seed=5)
    for i in range(3):
        scene = Scene(c, i, frames=2)
        pair, after = scene.pair(0), scene.frame(1)
        xy = torch.stack(torch.meshgrid(torch.arange(200.), torch.arange(240.), indexing='xy')) + pair.flow
        warped = cv2.remap(after.permute(1, 2, 0).numpy(), xy[0].numpy(), xy[1].numpy(), cv2.INTER_CUBIC)
        seen = (pair.mask & ~pair.occlusion).numpy()
        clean = pair.clean.permute(1, 2, 0).numpy()
        assert np.abs(warped - clean)[seen].mean() < .5*np.abs(after.permute(1, 2, 0).numpy() - clean)[seen].mean() + 1e-3


def test_verify_names_missing_altered_swapped_and_foreign_files(tmp_path):
    root = tmp_path/'set'
    make_dataset(root, **SMALL, progress=False)
    frames = sorted((root/'training/final/person_00000').iterdir())
    a, b = frames[0].read_bytes(), frames[1].read_bytes()
    frames[0].write_bytes(b); frames[1].write_bytes(a)
    gone = next(root.rglob('*.flo')); gone.unlink()
    cut = root/'training/masks/person_00000/frame_0002.png'; cut.write_bytes(cut.read_bytes()[:-10])
    (root/'training/flow/extra.flo').write_bytes(b'x')
    text = '\n'.join(verify_dataset(root))
    for path in (*frames[:2], gone, cut, root/'training/flow/extra.flo'): assert str(path.relative_to(root)) in text
    assert len(text.splitlines()) == 5


@pytest.mark.parametrize('change, field', [(dict(pairs=0), 'pairs'), (dict(width=3), 'width'), (dict(gaussians=1), 'gaussians')])
def test_bad_settings_name_the_field_and_write_nothing(tmp_path, change, field):
    with pytest.raises(InputError, match=field): make_dataset(tmp_path/'x', **(SMALL | change), progress=False)
    assert not (tmp_path/'x').exists()


def test_a_folder_in_use_is_never_overwritten(tmp_path, data):
    with pytest.raises(InputError, match='--resume'): make_dataset(data, **SMALL, progress=False)
    with pytest.raises(InputError, match='pairs=22, now 6'): make_dataset(data, **SMALL, resume=True, progress=False)
    (tmp_path/'mine.txt').write_text('precious')
    with pytest.raises(InputError, match='not empty'): make_dataset(tmp_path, **SMALL, progress=False)


def test_a_folder_that_is_no_data_set_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='no such folder'): FlowDataset(tmp_path/'nowhere')
    with pytest.raises(InputError, match='dataset.json is missing'): FlowDataset(tmp_path)
    (tmp_path/'dataset.json').write_text('{"config": {}')
    with pytest.raises(InputError, match='not valid JSON'): read_manifest(tmp_path)
    (tmp_path/'dataset.json').write_text('[]')
    with pytest.raises(InputError, match="field 'config'"): read_manifest(tmp_path)


def test_a_damaged_file_gives_one_error_with_its_path(tmp_path):
    root = tmp_path/'set'
    make_dataset(root, **SMALL, progress=False)
    path = root/'training/flow/person_00000/frame_0001.flo'
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match='frame_0001.flo'): FlowDataset(root)[0]


def test_plan_covers_exactly_the_pairs_asked_for():
    for pairs in (1, 4, 5, 99): assert sum(p['pairs'] for p in sequence_plan(DatasetConfig(pairs=pairs))) == pairs
