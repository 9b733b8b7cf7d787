"""Others read our files unmodified. torchvision and ptlflow are not installed here: what their readers expect of a Sintel folder is spelled out below,
as read in torchvision/datasets/_optical_flow.py (class Sintel), ptlflow/data/datasets.py (class SintelDataset) and RAFT's core/datasets.py (class MpiSintel)."""
import json, struct
from glob import glob
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from _tiny import tiny_set
from srflow_nb.dataset import FlowDataset, make_dataset
from srflow_nb.flowio import read_flow
from srflow_nb.layout import read_kind, verify_dataset

SMALL = dict(pairs=6, width=96, height=112, seed=3, gaussians=2000, progress=False)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('third')/'Sintel'
    make_dataset(folder, **SMALL, pairs_per_sequence=3)
    return folder


@pytest.fixture(scope='module')
def five(tmp_path_factory):
    folder = tmp_path_factory.mktemp('five')/'set'
    make_dataset(folder, **SMALL, pairs_per_sequence=3, flow_format='flo5')
    return folder


def scenes(root, split, kind): return sorted(p.name for p in (root/split/kind).iterdir())


@pytest.mark.parametrize('split', ['training', 'test'])
@pytest.mark.parametrize('render', ['clean', 'final'])
def test_as_raft_and_torchvision_pair_a_folder(root, split, render):
    """RAFT, torchvision: for each folder of the render, the sorted *.png are paired with their neighbours, and the sorted *.flo of the folder of the same
    name are appended to a flat list. The two lists belong together only if every sequence has exactly one flow file less than pictures."""
    images, flows = [], []
    for scene in scenes(root, split, render):
        files = sorted(glob(str(root/split/render/scene/'*.png')))
        images += [(files[i], files[i+1]) for i in range(len(files) - 1)]
        flows += sorted(glob(str(root/split/'flow'/scene/'*.flo')))
    ours = FlowDataset(root, split, render)
    assert len(images) == len(flows) == len(ours) > 0
    for (a, b), f, item in zip(images, flows, ours):
        number = int(Path(a).stem.split('_')[1])
        assert Path(b).stem == f'frame_{number+1:04d}' and Path(f).stem == Path(a).stem and Path(f).parent.name == Path(a).parent.name
        with Image.open(a) as im: first = np.asarray(im); assert im.mode == 'RGB' and im.size == (96, 112)         # torchvision converts any other mode
        assert np.abs(first.transpose(2, 0, 1)/255 - item['frame1'].numpy()).max() < 1e-6
        assert np.array_equal(flo_by_hand(f), item['flow'].numpy())


def flo_by_hand(path):
    "A .flo as RAFT's frame_utils.readFlow and torchvision's _read_flo read it: magic 202021.25, int32 width and height, then float32 u, v by rows."
    with open(path, 'rb') as f:
        assert np.fromfile(f, '<f4', 1)[0] == np.float32(202021.25)
        w, h = (int(np.fromfile(f, '<i4', 1)[0]) for _ in range(2))
        data = np.fromfile(f, '<f4', 2*w*h)
        assert len(data) == 2*w*h and not f.read(1)
    return data.reshape(h, w, 2).transpose(2, 0, 1)


@pytest.mark.parametrize('split', ['training', 'test'])
def test_as_ptlflow_pairs_a_folder(root, split):
    """ptlflow: sequence names are the *stems* of what lies in `clean` (so nothing but folders without a dot may lie there); it asserts, for each sequence and
    render, images - 1 == flows, and if the split has a folder `occlusions`, as many *.png there as flows, read by cv2 in grey."""
    names = sorted(p.stem for p in (root/split/'clean').glob('*'))
    assert names == scenes(root, split, 'clean') == scenes(root, split, 'final') == scenes(root, split, 'flow') and all((root/split/'clean'/n).is_dir() for n in names)
    for render in ('clean', 'final'):
        for n in names:
            images, flows = (sorted((root/split/k/n).glob(g)) for k, g in ((render, '*.png'), ('flow', '*.flo')))
            hidden = sorted((root/split/'occlusions'/n).glob('*.png'))
            assert len(images) - 1 == len(flows) == len(hidden)
            for f, o in zip(flows, hidden):
                assert f.stem == o.stem
                grey = cv2.imread(str(o), 0)
                assert grey.shape == (112, 96) and set(np.unique(grey)) <= {0, 255}


def test_flow_is_within_what_trainers_take_for_valid(root):
    "RAFT takes |flow| < 1000 px for valid, ptlflow < 10,000; ours is finite everywhere and far below."
    for path in root.rglob('flow*/*/*.flo'):
        f = flo_by_hand(path)
        assert np.isfinite(f).all() and np.abs(f).max() < 200


def test_backward_lists_pair_with_forward_lists(root):
    "ptlflow: flow_b_paths[i] is the backward flow of flow_paths[i]; both are sorted lists."
    for scene in scenes(root, 'training', 'flow'):
        forward, back = (sorted((root/'training'/k/scene).glob('*.flo')) for k in ('flow', 'flow_backward'))
        assert len(forward) == len(back)
        for f, b in zip(forward, back):
            assert int(b.stem[-4:]) == int(f.stem[-4:]) + 1
            u, v = torch.from_numpy(flo_by_hand(f)), torch.from_numpy(flo_by_hand(b))
            files = {k: root/'training'/k/scene/f'{f.stem}.png' for k in ('masks', 'occlusions')}
            seen = (read_kind('masks', files['masks']) > 0) & ~read_kind('occlusions', files['occlusions'])
            y, x = torch.nonzero(seen, as_tuple=True)
            to = torch.stack([x + u[0, y, x], y + u[1, y, x]]).round().long()
            inside = (to[0] >= 0) & (to[0] < 96) & (to[1] >= 0) & (to[1] < 112)
            there_and_back = u[:, y[inside], x[inside]] + v[:, to[1][inside], to[0][inside]]
            assert there_and_back.norm(dim=0).median() < .25 + .1*u[:, y, x].norm(dim=0).median()


def test_opencv_reads_our_flow(root):
    for path in sorted(root.rglob('*.flo')): assert np.array_equal(cv2.readOpticalFlow(str(path)), read_flow(path).permute(1, 2, 0).numpy())


def test_opencv_and_pil_read_our_depth_and_labels(root):
    for path in sorted(root.rglob('depth/*/*.png'))[:6]:
        steps = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert steps.dtype == np.uint16 and steps.ndim == 2
        note = json.loads((path.parent.parent.parent/'annotations'/f'{path.parent.name}.json').read_text())
        ours, on = read_kind('depth', path, note['depth_scale']).numpy(), steps > 0
        assert np.array_equal(on, np.isfinite(ours)) and np.allclose(steps[on]*note['depth_scale'], ours[on], rtol=1e-6) and .2 < np.median(ours[on]) < 6
        with Image.open(path) as im: assert np.array_equal(np.asarray(im), steps)
    names = json.loads((root/'dataset.json').read_text())['labels']
    for path in sorted(root.rglob('masks/*/*.png'))[:6]:
        with Image.open(path) as im: index = np.asarray(im); assert im.mode == 'P' and index.max() < len(names) and (index == names.index('skin')).any()


def test_spring_readers_read_our_flo5(five):
    "Spring's flow_IO: the data set named 'flow' of an HDF5 file, (H,W,2), NaN where unknown."
    paths = sorted(five.rglob('*.flo5'))
    assert paths and not list(five.rglob('*.flo'))
    for path in paths:
        with h5py.File(path, 'r') as f: assert np.array_equal(f['flow'][()], read_flow(path).permute(1, 2, 0).numpy()) and f['flow'].shape == (112, 96, 2)


def test_both_formats_hold_the_same_pairs(root, five):
    assert verify_dataset(five) == []
    for split in ('training', 'test'):
        a, b = FlowDataset(root, split), FlowDataset(five, split)
        assert len(a) == len(b) > 0
        for x, y in zip(a, b): assert x['name'] == y['name'] and all(torch.equal(x[k], y[k]) for k in x if k != 'name')
    size = lambda folder, suffix: sum(p.stat().st_size for p in folder.rglob(f'*{suffix}'))
    assert size(five, '.flo5') < size(root, '.flo')


def test_a_reader_of_the_magic_alone_sees_no_difference(root):
    "Byte order and header of every .flo, by struct alone."
    for path in root.rglob('*.flo'):
        data = path.read_bytes()
        assert struct.unpack('<fii', data[:12]) == (202021.25, 96, 112) and len(data) == 12 + 8*96*112


def test_nothing_foreign_lies_between_the_pictures(root):
    "Readers glob: a stray picture would shift every pair behind it."
    for path in (p for p in root.rglob('*') if p.is_file() and p.parent.parent.parent.name in ('training', 'test')):
        assert path.suffix in ('.png', '.flo') and path.stem.startswith('frame_'), path


def test_tiny_sets_without_renderer_have_the_same_layout(root, tmp_path):
    "The layout's own functions make the folders that the data set has."
    tiny = tiny_set(tmp_path/'tiny')
    kinds = lambda folder: {p.name for p in (folder/'training').iterdir()}
    assert kinds(tiny) == kinds(root)
