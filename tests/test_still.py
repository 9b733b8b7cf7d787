"When nothing moves, say so: identical frames, and frames that differ by sensor noise alone (RAFT's issue 123: garbage)."
import pytest
import torch

from srflow_nb.core import rng
from srflow_nb.estimators import get_estimator
from srflow_nb.mesh_faces import sample_backdrop, still_pairs
from srflow_nb.light import encode
from srflow_nb.warps import PHOTOS, add_noise, photo

SIZE = 192


def faces(): return [p['frame1'] for p in still_pairs(2, SIZE, seed=7)]


def walls(): return [torch.from_numpy(encode(sample_backdrop((SIZE, SIZE), seed))).permute(2, 0, 1).float() for seed in range(4)]


def photographs(): return [torch.from_numpy(photo(n)[:SIZE, :SIZE].copy()).permute(2, 0, 1) for n in PHOTOS if min(photo(n).shape[:2]) >= SIZE][:3]


@pytest.fixture(scope='module', params=[faces, walls, photographs], ids=lambda f: f.__name__)
def pictures(request): return torch.stack(request.param())


@pytest.fixture(scope='module')
def net(): return get_estimator('srflownet-tiny')


def test_identical_frames_do_not_move(net, pictures): assert net(pictures, pictures.clone()).norm(dim=1).mean() <= .02


@pytest.mark.parametrize('sigma', [1., 2., 3., 4., 5.])
def test_sensor_noise_does_not_move(net, pictures, sigma):
    one, two = (torch.stack([add_noise(p, rng(0, 'still test', which, i), sigma) for i, p in enumerate(pictures)]) for which in (1, 2))
    assert not torch.equal(one, two) and net(one, two).norm(dim=1).mean() <= .1
