"A photograph's skin: landmark files survive damage, the fit finds a known truth, the skin works like any other."
import functools, json
from dataclasses import replace

import numpy as np
import pytest
import torch
from _fuzz import hunt

from srflow_nb.appearance import Appearance
from srflow_nb.avatar import Avatar
from srflow_nb.camera import Camera
from srflow_nb.core import InputError, data_path, rng
from srflow_nb.head import REGIONS, Head, sample_identity
from srflow_nb.photo_skin import LANDMARKS, PhotoSkin, fit_photo, read_landmarks


@functools.cache
def astronaut():
    data = pytest.importorskip('skimage.data')
    return data.astronaut(), read_landmarks(data_path('astronaut_landmarks.json'))


@functools.cache
def skin(): return PhotoSkin.from_photo(*astronaut())


def points(): return rng(0, 'points').uniform(100, 300, (68, 2)).round(2)


def written(tmp_path, kind):
    "One file of each kind with the same points."
    p, path = points(), tmp_path/f'face.{kind}'
    if kind == 'pts': path.write_text('version: 1\nn_points: 68\n{\n'+''.join(f'{x+.5:.2f} {y+.5:.2f}\n' for x, y in p)+'}\n')
    if kind == 'json': path.write_text(json.dumps({'points': {n: list(q) for n, q in zip(LANDMARKS, p)}}))
    if kind == 'csv': path.write_text('name,x,y\n'+''.join(f'{n},{x},{y}\n' for n, (x, y) in zip(LANDMARKS, p)))
    return path


@pytest.mark.parametrize('kind', ['pts', 'json', 'csv'])
def test_every_kind_of_file_gives_the_same_points(tmp_path, kind): assert np.allclose(read_landmarks(written(tmp_path, kind)), points())


def test_a_subset_leaves_the_rest_unknown(tmp_path):
    path = tmp_path/'some.json'
    path.write_text(json.dumps({'points': {str(k): [k, 2*k] for k in range(30, 50)}}))
    p = read_landmarks(path)
    assert np.isnan(p[:30]).all() and np.isnan(p[50:]).all() and p[31].tolist() == [31, 62]


@pytest.mark.parametrize('name,text,message', [
    ('a.txt', '', 'expected .pts, .json or .csv'), ('a.pts', 'version: 1', 'no points in braces'), ('a.pts', '{\n1 2\n}', 'expected 68'),
    ('a.json', '{', 'not JSON'), ('a.json', '['*100_000, 'not JSON'), ('a.json', '3', 'expected 68 pairs'), ('a.json', '[[1, 2]]', '1 landmarks; expected at least 12'),
    ('a.json', '{"points": {"nose_9": [1, 2]}}', 'nearest: nose_'), ('a.json', '{"points": {"nose_1": [1, NaN]}}', 'no pixel coordinate'),
    ('a.json', '{"points": {"nose_1": [1, 1'+'0'*400+']}}', 'no pixel coordinate'), ('a.json', '{"points": {"nose_1": [true, 1]}}', 'no pixel coordinate'),
    ('a.json', '{"points": {"nose_1": [1, 1], "28": [1, 1]}}', 'given twice'), ('a.csv', 'nose_1,3', 'three columns'), ('a.csv', 'nose_1,3,x', 'no pixel coordinate'),
    ('a.csv', '68,3,4', 'unknown landmark'), ('a.csv', '', '0 landmarks')])
def test_mistakes_in_files_are_named(tmp_path, name, text, message):
    (tmp_path/name).write_text(text)
    with pytest.raises(InputError, match=message): read_landmarks(tmp_path/name)


def test_files_that_are_missing_huge_or_no_text(tmp_path):
    with pytest.raises(FileNotFoundError, match='no such landmark file'): read_landmarks(tmp_path/'none.pts')
    (tmp_path/'big.csv').write_bytes(b'a'*1_000_001)
    with pytest.raises(InputError, match='1000001 bytes'): read_landmarks(tmp_path/'big.csv')
    (tmp_path/'bin.pts').write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match='not text'): read_landmarks(tmp_path/'bin.pts')


def right(p): return p.shape == (68, 2) and np.isfinite(p).all(1).sum() >= 12 and np.nanmax(np.abs(p)) <= 1e6


@pytest.mark.parametrize('kind', ['pts', 'json', 'csv'])
def test_damaged_files_give_points_or_one_clear_error(tmp_path, kind):
    assert hunt(read_landmarks, [written(tmp_path, kind).read_bytes()], tmp_path/f'bad.{kind}', n=400, ok=right)['refused'] > 100


@pytest.mark.parametrize('seed', range(3))
def test_a_known_face_is_found_again(seed):
    from srflow_nb.photo_skin import _ON_HEAD
    head, g = Head.load(), rng(seed, 'fit')
    camera = Camera.look_at((g.uniform(-.5, .5), g.uniform(-.2, .2), 1.5), focal=1400., width=600, height=500)
    v = head.pose({'mouthSmileLeft': .5, 'mouthSmileRight': .5, 'jawOpen': g.uniform(0, .4)}, sample_identity(head, seed))
    p = np.full((68, 2), np.nan)
    p[list(_ON_HEAD)] = camera.project(torch.from_numpy(v[list(_ON_HEAD.values())]))[0].numpy()
    fit = fit_photo(head, p, 600, 500)
    turn = fit.camera.viewmat[:3, :3]@camera.viewmat[:3, :3].T
    assert fit.error < 2 and np.degrees(np.arccos(((turn.trace()-1)/2).clip(-1, 1))) < 12
    assert (fit.expression >= 0).all() and (fit.expression <= 1).all()


def test_swapped_landmarks_are_refused():
    _, p = astronaut()
    for bad in (p[:, ::-1], np.stack([512-p[:, 0], p[:, 1]], 1), p[rng(0, 'mix').permutation(68)]):
        with pytest.raises(InputError, match='swapped'): fit_photo(Head.load(), bad, 512, 512)
    with pytest.raises(InputError, match='expected at least 12'): fit_photo(Head.load(), np.where(np.arange(68)[:, None] < 60, np.nan, p), 512, 512)
    with pytest.raises(InputError, match='span'): fit_photo(Head.load(), p*1e-3, 512, 512)
    with pytest.raises(InputError, match='expected .68, 2.'): PhotoSkin.from_photo(astronaut()[0], p[:5])


def test_the_skin_works_like_any_appearance():
    s, head = skin(), Head.load()
    assert isinstance(s, Appearance) and 0 < s.melanin < 1.2
    ids = np.arange(0, len(head.faces), 3)
    bary = np.full((len(ids), 3), 1/3, np.float32)
    color, paint = s.albedo(head, ids, bary), Appearance.albedo(s, head, ids, bary)
    assert color.shape == (len(ids), 3) and np.isfinite(color).all() and color.min() >= 0 and color.max() <= 1
    other = np.isin(head.regions[ids], [REGIONS.index(k) for k in ('eye', 'teeth', 'tongue', 'lashes', 'mouth')])
    assert np.array_equal(color[other], paint[other]) and (np.abs(color-paint).max(1)[~other] > .01).mean() > .3
    a = Avatar.create(identity=s.fit.identity, appearance=s, n=3000)
    assert len(a.pose(s.fit.expression)) == len(a)


def test_the_photographs_colours_come_back_where_they_are_trusted():
    s, head = skin(), Head.load()
    v = np.flatnonzero((s.trust[0] > .95) & ~np.isin(np.arange(len(head.vertices)), np.unique(head.faces[head.regions != 0])))
    face = np.array([np.flatnonzero((head.faces == k).any(1))[0] for k in v])
    bary = (head.faces[face] == v[:, None]).astype(np.float32)
    x, y = np.floor(s.places[0][v]).astype(int).T
    there = s.image[y, x]
    again = s.albedo(head, face, bary)*s.lit[0][v]
    assert len(v) > 100 and np.median(np.abs(again**(1/2.2)-there**(1/2.2))) < .04


def test_what_is_not_seen_comes_from_the_other_side():
    "Trust only one half of the photograph: the other half of the face wears its mirror image."
    s, head = skin(), Head.load()
    x = head.vertices[:, 0]
    half = replace(s, trust=np.stack([s.trust[0]*(x > 0), s.trust[1]*(x < 0)]))
    ids = np.flatnonzero((head.vertices[head.faces][:, :, 0] < -.02).all(1) & (head.regions == 0) & (half.trust[1][head.faces].min(1) > .9))
    bary, mirrored = np.full((len(ids), 3), 1/3, np.float32), {tuple(sorted(f)): k for k, f in enumerate(head.faces.tolist())}
    twin = np.array([np.linalg.norm(head.vertices-head.vertices[k]*[-1, 1, 1], axis=1).argmin() for k in range(len(x))])
    other = np.array([mirrored.get(tuple(sorted(twin[head.faces[k]])), -1) for k in ids])
    ok = other >= 0
    assert ok.sum() > 50
    assert np.abs(half.albedo(head, ids[ok], bary[ok])-half.albedo(head, other[ok], bary[ok])).max() < .02
