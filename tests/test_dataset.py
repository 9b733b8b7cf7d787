"The data set keeps its promises: same bytes, whole files, clear errors."
import json, os, random, shutil, signal, subprocess, sys, time

import cv2
import joblib
import numpy as np
import pytest
import torch

from srflow_nb.core import InputError
from srflow_nb.dataset import EXTRAS, FlowDataset, bytes_needed, make_dataset, sequence_plan
from srflow_nb.flowio import read_flow
from srflow_nb.layout import KINDS, read_manifest, verify_dataset
from srflow_nb.scene import DatasetConfig

SMALL = dict(pairs=5, width=96, height=112, seed=3, gaussians=2000, pairs_per_sequence=3)      # two people
TINY = dict(pairs=8, width=48, height=56, seed=3, gaussians=1000, pairs_per_sequence=1)


def script(out, settings, before='', **more):
    "A run of its own, to be killed or starved."
    settings = settings | more | dict(progress=False)
    return [sys.executable, '-c', f'{before}\nfrom srflow_nb.dataset import make_dataset; make_dataset({str(out)!r}, **{settings!r})']


def unfinished(root): return [p for p in root.rglob('.*.tmp*')]


def digests(root): return json.loads((root/'dataset.json').read_text())['files']


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp('whole')/'set'
    make_dataset(root, **TINY, progress=False)
    return digests(root)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')/'set'
    make_dataset(root, **SMALL, progress=False)
    return root


def test_any_number_of_workers_gives_the_same_bytes(tmp_path, data):
    make_dataset(tmp_path/'two', **SMALL, workers=2, progress=False)
    assert digests(data) == digests(tmp_path/'two')


def test_another_seed_gives_other_frames(tmp_path, data):
    make_dataset(tmp_path/'b', **(SMALL | dict(seed=4)), progress=False)
    a, b = digests(data), digests(tmp_path/'b')
    assert a['training/clean/person_00000/frame_0001.png'] != b['training/clean/person_00000/frame_0001.png']


def test_kill_and_resume_gives_the_bytes_of_an_unbroken_run(tmp_path, whole):
    job = subprocess.Popen(script(tmp_path/'cut', TINY))
    deadline = time.time() + 120
    while not list((tmp_path/'cut').glob('*/annotations/*.json')) and job.poll() is None and time.time() < deadline: time.sleep(.01)
    job.send_signal(signal.SIGKILL); job.wait()
    assert not (tmp_path/'cut'/'dataset.json').exists(), 'the run ended before it could be killed'
    (tmp_path/'cut/training/clean/.frame_0001.png.4711.tmp.png').touch()          # a kill in the middle of a file leaves this
    make_dataset(tmp_path/'cut', **TINY, resume=True, progress=False)
    assert digests(tmp_path/'cut') == whole
    assert verify_dataset(tmp_path/'cut') == [] and unfinished(tmp_path/'cut') == []


def test_killed_at_any_moment_what_has_its_final_name_is_whole(tmp_path, whole):
    moments, cut = random.Random(0), tmp_path/'cut'
    for k in range(2):
        job = subprocess.Popen(script(cut, TINY, workers=2, resume=k > 0), start_new_session=True)
        seen, deadline = len(list(cut.rglob('frame_*'))), time.time()+120
        while len(list(cut.rglob('frame_*'))) < seen+1+11*k and job.poll() is None and time.time() < deadline: time.sleep(.005)
        time.sleep(moments.uniform(0, .05))
        job.send_signal(signal.SIGKILL); job.wait()           # its workers live on for a while, as orphans do
        time.sleep(moments.uniform(0, .05)); os.killpg(job.pid, signal.SIGKILL)
        for p in cut.rglob('*'):
            name = p.relative_to(cut).as_posix()
            if p.is_file() and p.name.startswith('frame_'): assert p.stat().st_size == whole[name][1], name
    make_dataset(cut, **TINY, resume=True, progress=False)
    assert digests(cut) == whole and verify_dataset(cut) == [] and unfinished(cut) == []


def test_resume_makes_altered_files_again(tmp_path, data):
    root = shutil.copytree(data, tmp_path/'set')
    before, path = digests(root), next((root/'training/final').rglob('*.png'))
    data = bytearray(path.read_bytes()); data[len(data)//2] ^= 1; path.write_bytes(data)      # same size, one bit
    assert verify_dataset(root)
    make_dataset(root, **SMALL, resume=True, progress=False)
    assert digests(root) == before and verify_dataset(root) == []


def test_a_full_disk_gives_one_line_and_keeps_nothing_half_written(tmp_path):
    limit = 'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))'    # a flow file has 21,516 bytes
    job = subprocess.run(script(tmp_path/'set', TINY, limit), capture_output=True, text=True)
    last = job.stderr.strip().splitlines()[-1]
    assert job.returncode and 'InputError' in last and 'disk is full' in last and '--resume' in last
    assert unfinished(tmp_path/'set') == [] and not (tmp_path/'set/dataset.json').exists()
    make_dataset(tmp_path/'set', **TINY, resume=True, progress=False)
    assert verify_dataset(tmp_path/'set') == []


@pytest.mark.parametrize('workers', [1, 2])
def test_no_space_left_in_any_worker_is_said_clearly(tmp_path, workers):
    full = """import errno, os, srflow_nb.scene
def fail(self, t): raise OSError(errno.ENOSPC, 'No space left on device', 'somewhere')
srflow_nb.scene.Scene.frame = fail
"""
    if workers == 2:                                        # loky's workers import the library anew: break it in their start
        (tmp_path/'sitecustomize.py').write_text(full)
    env = os.environ | dict(PYTHONPATH=str(tmp_path) if workers == 2 else '')
    job = subprocess.run(script(tmp_path/'set', TINY, full, workers=workers), capture_output=True, text=True, env=env)
    assert job.returncode and 'the disk is full (No space left on device)' in job.stderr.strip().splitlines()[-1]


def test_too_small_a_disk_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match=r'need about .* GB, .* GB are free'): make_dataset(tmp_path/'x', pairs=10**7, width=1100, height=1604)
    assert not (tmp_path/'x').exists()


def test_the_estimate_of_room_is_enough_and_not_absurd(data, tmp_path):
    make_dataset(tmp_path/'packed', **SMALL, flow_format='flo5', progress=False)
    for root in (data, tmp_path/'packed'):
        size, c = sum(n for _, n in digests(root).values()), DatasetConfig(**read_manifest(root)['config'])
        assert .9*size < bytes_needed(c) < 4*size


def test_a_second_live_run_is_refused_and_a_dead_ones_lock_is_not(tmp_path):
    (tmp_path/'set').mkdir()
    (tmp_path/'set'/'.lock').write_text('4711')                # somebody died here
    job = subprocess.Popen(script(tmp_path/'set', TINY))
    while not list((tmp_path/'set').rglob('frame_*')) and job.poll() is None: time.sleep(.01)
    job.send_signal(signal.SIGSTOP)                            # alive, and still there when we look
    try:
        with pytest.raises(InputError, match=f'process {job.pid} is writing here'): make_dataset(tmp_path/'set', **TINY, resume=True, progress=False)
    finally: job.send_signal(signal.SIGCONT)
    assert job.wait() == 0 and verify_dataset(tmp_path/'set') == [] and not (tmp_path/'set'/'.lock').exists()


def test_a_dask_cluster_gives_the_same_bytes(tmp_path, data):
    distributed = pytest.importorskip('distributed', reason="dask[distributed] is not installed: pip install 'srflow-nb[dask]'")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, distributed.Client(cluster):
        with joblib.parallel_config('dask'): make_dataset(tmp_path/'there', **SMALL, workers=None, progress=False)
    assert digests(data) == digests(tmp_path/'there')


def test_only_the_kinds_asked_for_are_written_and_the_others_do_not_change(tmp_path, data):
    kinds = ('final', 'flow', 'masks')
    make_dataset(tmp_path/'few', **SMALL, kinds=kinds, progress=False)
    few = read_manifest(tmp_path/'few')
    assert {f.split('/')[1] for f in few['files']} == {*kinds, 'annotations'} and '--kinds final,flow,masks' in few['command']
    for f, entry in few['files'].items(): assert '/annotations/' in f or digests(data)[f] == entry
    item = FlowDataset(tmp_path/'few')[0]
    assert 'mask' in item and 'occlusion' not in item
    with pytest.raises(InputError, match="holds no 'clean'"): FlowDataset(tmp_path/'few', frames='clean')
    with pytest.raises(InputError, match="holds no 'depth'"): FlowDataset(tmp_path/'few', outputs=['depth'])


def test_packed_flow_is_the_same_flow(tmp_path, data):
    make_dataset(tmp_path/'packed', **SMALL, flow_format='flo5', progress=False)
    a, b = FlowDataset(data, outputs=EXTRAS)[1], FlowDataset(tmp_path/'packed', outputs=EXTRAS)[1]
    assert all(torch.equal(a[k], b[k]) for k in a if k != 'name') and a['name'] == b['name']


def test_every_output_has_its_shape_and_meaning(data):
    d = FlowDataset(data, outputs=EXTRAS)
    item, back = d[0], read_flow(data/'training/flow_backward/person_00000/frame_0002.flo')
    assert torch.equal(item['flow_backward'], back) and torch.equal(item['labels'] > 0, item['mask'])
    assert item['depth'].isfinite().equal(item['mask']) and (item['depth'][item['mask']] > .1).all()
    assert ((item['flow']-item['flow_head'])+item['flow_head'] == item['flow']).all()
    assert item['action_units'].shape[0] == 2 and (item['action_units'] >= 0).all()
    with pytest.raises(InputError, match='nearest: labels'): FlowDataset(data, outputs=['label'])


def test_people_of_the_test_split_are_never_trained_on(data):
    people = {s: {n for n, *_ in FlowDataset(data, s).items} for s in ('training', 'test')}
    assert people['training'] and people['test'] and not people['training'] & people['test']


def test_layout_is_that_of_sintel(data):
    for kind, name in (('clean', 'frame_0001.png'), ('final', 'frame_0004.png'), ('flow', 'frame_0001.flo'), ('occlusions', 'frame_0003.png'),
                       ('masks', 'frame_0004.png'), ('depth', 'frame_0004.png'), ('flow_head', 'frame_0003.flo'), ('flow_backward', 'frame_0002.flo')):
        assert (data/'training'/kind/'person_00000'/name).is_file()
    assert not (data/'training'/'flow'/'person_00000'/'frame_0004.flo').exists(), 'the last frame has no next one'
    assert not (data/'training'/'flow_backward'/'person_00000'/'frame_0001.flo').exists(), 'the first frame has none before it'
    assert {p.name for p in (data/'training').iterdir()} == {*KINDS, 'annotations'}


def test_opencv_reads_our_flow(data):
    path = data/'training/flow/person_00000/frame_0001.flo'
    assert np.array_equal(cv2.readOpticalFlow(str(path)), read_flow(path).permute(1, 2, 0).numpy())


def test_background_stands_still_and_head_moves(data):
    item = FlowDataset(data)[0]
    assert (item['flow'][:, ~item['mask']] == 0).all()
    assert item['flow'][:, item['mask']].norm(dim=0).mean() > .01
    assert item['frame1'].shape == (3, 112, 96) and item['valid'].all()


def test_flow_brings_the_next_clean_frame_onto_this_one(tmp_path):
    make_dataset(tmp_path/'set', pairs=3, pairs_per_sequence=1, width=200, height=240, gaussians=20_000, seed=5, progress=False)
    for item in FlowDataset(tmp_path/'set', frames='clean'):
        xy = torch.stack(torch.meshgrid(torch.arange(200.), torch.arange(240.), indexing='xy')) + item['flow']
        before, after = (item[k].permute(1, 2, 0).numpy() for k in ('frame1', 'frame2'))
        warped = cv2.remap(after, xy[0].numpy(), xy[1].numpy(), cv2.INTER_CUBIC)
        seen = (item['mask'] & ~item['occlusion']).numpy()
        assert np.abs(warped - before)[seen].mean() < .5*np.abs(after - before)[seen].mean() + 2e-3


def test_verify_names_missing_altered_swapped_and_foreign_files(tmp_path, data):
    root = shutil.copytree(data, tmp_path/'set')
    frames = sorted((root/'training/final/person_00000').iterdir())
    a, b = frames[0].read_bytes(), frames[1].read_bytes()
    frames[0].write_bytes(b); frames[1].write_bytes(a)
    gone = next(root.rglob('*.flo')); gone.unlink()
    cut = root/'training/masks/person_00000/frame_0002.png'; cut.write_bytes(cut.read_bytes()[:-10])
    (root/'training/flow/extra.flo').write_bytes(b'x')
    text = '\n'.join(verify_dataset(root))
    for path in (*frames[:2], gone, cut, root/'training/flow/extra.flo'): assert path.relative_to(root).as_posix() in text
    assert len(text.splitlines()) == 5


@pytest.mark.parametrize('change, field', [(dict(pairs=0), 'pairs'), (dict(width=3), 'width'), (dict(gaussians=1), 'gaussians'),
                                           (dict(kinds=('flow', 'clear')), 'nearest: clean'), (dict(speed=3), 'setting')])
def test_bad_settings_name_the_field_and_write_nothing(tmp_path, change, field):
    with pytest.raises(InputError, match=field): make_dataset(tmp_path/'x', **(SMALL | change), progress=False)
    assert not (tmp_path/'x').exists()


def test_a_folder_in_use_is_never_overwritten(tmp_path, data):
    with pytest.raises(InputError, match='--resume'): make_dataset(data, **SMALL, progress=False)
    with pytest.raises(InputError, match='pairs=5, now 6'): make_dataset(data, **(SMALL | dict(pairs=6)), resume=True, progress=False)
    (tmp_path/'mine.txt').write_text('precious')
    with pytest.raises(InputError, match='not empty'): make_dataset(tmp_path, **SMALL, progress=False)


def test_a_folder_that_is_no_data_set_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='no such folder'): FlowDataset(tmp_path/'nowhere')
    with pytest.raises(InputError, match='dataset.json is missing'): FlowDataset(tmp_path)
    (tmp_path/'dataset.json').write_text('{"config": {}')
    with pytest.raises(InputError, match='not valid JSON'): read_manifest(tmp_path)
    (tmp_path/'dataset.json').write_text('[]')
    with pytest.raises(InputError, match='expected the fields'): read_manifest(tmp_path)


def test_a_damaged_file_gives_one_error_with_its_path(tmp_path, data):
    root = shutil.copytree(data, tmp_path/'set')
    path = root/'training/flow/person_00000/frame_0001.flo'
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match='frame_0001.flo'): FlowDataset(root)[0]


def test_plan_covers_exactly_the_pairs_asked_for():
    for pairs in (1, 4, 5, 8, 9, 99): assert sum(p['pairs'] for p in sequence_plan(DatasetConfig(pairs=pairs))) == pairs


def test_a_device_that_is_not_there_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match='nearest: cuda'): make_dataset(tmp_path/'x', device='cudda', progress=False)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match='no CUDA device'): make_dataset(tmp_path/'x', device='cuda', progress=False)
    assert not (tmp_path/'x').exists()
