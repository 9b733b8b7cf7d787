"Film: walls that stay what they are, light that adds up, noise by its law, and the same bytes wherever a frame is developed."
import math, subprocess, sys

import cv2
import numpy as np
import pytest
import torch

from srflow_nb.core import InputError
from srflow_nb.film import BACKGROUNDS, FILM_KINDS, TEXTURES, Film, decode, sample_background, sample_film
from srflow_nb.light import encode

STILL = dict(defocus=0., exposure=0., white=0., shot=0., read=0., grain=0., quality=None)


@pytest.fixture(scope='module')
def picture(): return sample_background(96, 128, 5, kind='books')


@pytest.mark.parametrize('kind', [*BACKGROUNDS, *TEXTURES])
@pytest.mark.parametrize('size', [(32, 32), (61, 190), (250, 90)])
def test_a_wall_is_a_picture_of_its_seed(kind, size):
    w, h = size
    for seed in range(5):
        a = sample_background(w, h, seed, kind=kind)
        assert a.shape == (3, h, w) and a.dtype == torch.float32 and torch.isfinite(a).all() and 0 <= a.min() and a.max() <= 1
        assert torch.equal(a, sample_background(w, h, seed, kind=kind)) and not torch.equal(a, sample_background(w, h, seed+1, kind=kind))
        assert (kind == 'flat') == bool((a == a[:, :1, :1]).all())


def test_every_kind_of_wall_occurs_and_shares_add_up():
    assert sum(share for share, _ in BACKGROUNDS.values()) == pytest.approx(1) and sum(k.share for k in FILM_KINDS.values()) == pytest.approx(1)
    plain = [bool((a == a[:, :1, :1]).all()) for a in (sample_background(32, 32, s) for s in range(300))]
    assert np.mean(plain) == pytest.approx(BACKGROUNDS['flat'][0], abs=.06)


def test_a_perfect_camera_changes_nothing_but_the_number_of_bits(picture):
    assert (Film(**STILL).develop(picture)-picture).abs().max() <= .5/255+1e-5


@pytest.mark.parametrize('kind', list(FILM_KINDS))
def test_frames_depend_on_seed_and_number_alone(picture, kind):
    film = sample_film(3, kind=kind); a = film.develop(picture, 7)
    film.develop(picture, 1); threads = cv2.getNumThreads(); cv2.setNumThreads(1)
    assert torch.equal(a, sample_film(3, kind=kind).develop(picture, 7)); cv2.setNumThreads(threads)
    assert not torch.equal(a, film.develop(picture, 8)) and torch.equal((a*255).round()/255, a) and a.is_contiguous()


def test_another_process_develops_the_same_bytes():
    code = "import hashlib; from srflow_nb.film import *; f = sample_film(4); print(hashlib.sha256(b''.join(f.develop(sample_background(90, 70, s), s).numpy().tobytes() for s in range(4))).hexdigest())"
    one, two = (subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert one == two and len(one) == 65


def test_blur_keeps_the_light_and_not_the_picture_values():
    edge = torch.zeros(3, 40, 40); edge[:, :, 20:] = 1
    for radius in (.5, 1., 2., 3.):
        out = Film(**{**STILL, 'defocus': radius}).develop(edge)
        assert decode(out).mean() == pytest.approx(.5, abs=2e-3)
    assert out.mean() > .51                                            # a blur of picture values would keep this mean instead


def test_a_shutter_averages_light():
    film = Film(shutter=1.); frames = [torch.full((3, 4, 4), float(v)) for v in (0, 1, 1, 0)]
    assert film.expose(frames).mean() == pytest.approx(.5**(1/2.2), abs=1e-6) and film.expose(frames[1:2]) is frames[1]


@pytest.mark.parametrize('shutter', [0., .1, .5, 1.])
@pytest.mark.parametrize('motion', [0., .3, 2., 9., 400., float('nan')])
def test_moments_lie_evenly_around_the_frame_and_inside_the_shutter(shutter, motion):
    times = np.array(Film(shutter=shutter).samples(motion))
    assert 1 <= len(times) <= 16 and times.sum() == pytest.approx(0, abs=1e-9) and np.abs(times).max() <= shutter/2
    if len(times) > 1: assert np.ptp(np.diff(times)) < 1e-9 and (len(times) == 16 or np.diff(times).max()*motion <= 1+1e-9)
    else: assert not shutter*motion > .5


def test_drift_is_smooth_and_of_the_size_asked_for():
    drift = np.log([[Film(seed=s, exposure=.03, white=.01, period=20.).gains(t) for t in range(200)] for s in range(30)])
    assert drift[..., 1].std() == pytest.approx(.03, rel=.2) and (drift[..., 0]-drift[..., 1]).std() == pytest.approx(.01, rel=.2)
    assert np.abs(np.diff(drift, axis=1)).max() < .04 and (Film(exposure=0., white=0.).gains(9) == 1).all()


@pytest.mark.parametrize('grain', [0., .4, .8])
@pytest.mark.parametrize('value', [.35, .5, .8])
def test_noise_follows_its_law(value, grain):
    film = Film(**{**STILL, 'shot': 3e-4, 'read': 2e-3, 'grain': grain}); x = value**2.2
    out = torch.stack([film.develop(torch.full((3, 60, 60), value), t) for t in range(8)])
    assert decode(out).std() == pytest.approx(math.sqrt(3e-4*x+4e-6+(2.2*value**1.2/255)**2/12), rel=.03) and decode(out).mean() == pytest.approx(x, rel=5e-3)
    a, b = out[0]-value, out[1]-value; assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < .05                       # new in each frame
    assert abs(np.corrcoef(a[:, :, 1:].ravel(), a[:, :, :-1].ravel())[0, 1]) < .1 if grain == 0 else True


def test_jpeg_is_worse_at_lower_quality(picture):
    errors = [(Film(**{**STILL, 'quality': q}).develop(picture)-picture).abs().mean().item() for q in (98, 85, 60)]
    assert errors == sorted(errors) and errors[0] > 0


@pytest.mark.parametrize('bad, match', [(dict(shutter=1.5), 'shutter: 1.5'), (dict(read=-1.), 'below 0'), (dict(quality=0), 'quality: 0'), (dict(quality=101), 'quality: 101'),
                                        (dict(defocus=float('nan')), 'defocus'), (dict(period=0.), 'period above 0')])
def test_what_is_no_film_is_refused(bad, match):
    with pytest.raises(InputError, match=match): Film(**bad)


def test_what_cannot_be_developed_is_refused(picture):
    with pytest.raises(InputError, match=r'expected \(3, H, W\)'): Film().develop(picture[:1])
    with pytest.raises(InputError, match='nearest'): sample_film(0, kind='fone')
    with pytest.raises(InputError, match='nearest'): sample_background(9, 9, 0, kind='indor')


def test_drawn_cameras_lie_in_their_ranges_and_make_the_noise_they_promise():
    for kind, k in FILM_KINDS.items():
        for s in range(40):
            f = sample_film(s, kind=kind); sigma = math.sqrt(f.shot*.18+f.read**2)*255/(2.2*.18**(1-1/2.2))
            assert k.noise[0]*.999 <= sigma <= k.noise[1]*1.001 and k.shutter[0] <= f.shutter <= k.shutter[1] and f.exposure <= k.exposure and f == sample_film(s, kind=kind)
            assert f.quality is None or k.quality[0] <= f.quality <= k.quality[1]
    assert encode(torch.tensor(.18)) == pytest.approx(.4587, abs=1e-3)
