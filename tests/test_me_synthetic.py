"""The synthetic composite: planned like the published one, the same bytes whoever renders it, resumable, readable by the loaders."""
import json
import shutil
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import openpyxl
import pytest
import torch

from srflow_nb.core import InputError, rng
from srflow_nb.flowio import read_image
from srflow_nb.head import Head
from srflow_nb.me_data import CLASSES, Clip, load_casme2, load_composite, load_samm, load_smic, megc2019_composite
from srflow_nb.me_synthetic import (AUS_BY_CLASS, DOMAINS, FULL, clip_folder, clips_per_subject, composite_hash, crop_camera, draw_aus,
                                    expose, eye_distance, frame_name, kept_frames, make_person, peak_motion, perform, plan_clips,
                                    render_clip, share_out, synthetic_composite, write_clip, write_sheet)

TINY = dict(seed=5, subjects=(1, 2, 1), clips=(3, 3, 3), frames=3, scale=.2, gaussians=1500, progress=False)

@pytest.fixture(scope='module')
def composite(tmp_path_factory):
    root = tmp_path_factory.mktemp('me')/'composite'
    return root, synthetic_composite(root, workers=1, **TINY)

def full_plans(seed=0): return sum((plan_clips(d, seed, s, n) for d, s, n in zip(DOMAINS.values(), FULL['subjects'], FULL['clips'])), [])

def test_full_plan_has_the_published_counts():
    clips = [Clip(p.domain, f'{p.domain}/{p.subject}', str(p.index), p.label, [], 0, None, 0) for p in full_plans()]
    assert len(megc2019_composite(clips)) == 442

def test_clips_per_person_are_as_uneven_as_published():
    for d, (lo, hi) in zip(DOMAINS.values(), ((2, 39), (1, 31), (1, 20))):
        n = clips_per_subject(d, d.subjects, sum(d.clips))
        assert (len(n), n.sum(), n.min(), n.max()) == (d.subjects, sum(d.clips), lo, hi) and (np.diff(n) <= 0).all()

@pytest.mark.parametrize('people,total', [(1, 5), (4, 4), (5, 30), (40, 100)])
def test_any_number_of_people_share_any_number_of_clips(people, total):
    n = clips_per_subject(DOMAINS['smic'], people, total)
    assert len(n) == people and n.sum() == total and n.min() >= 1
    with pytest.raises(InputError, match='cannot be shared'): clips_per_subject(DOMAINS['smic'], total + 1, total)

def test_shares_are_as_proportional_as_whole_numbers_can_be():
    g = rng(0, 'shares')
    for _ in range(50):
        s, n = g.uniform(.1, 1, 7), int(g.integers(0, 200)); out = share_out(s, n)
        assert out.sum() == n and np.abs(out - n*s/s.sum()).max() < 1

def test_clips_keep_the_limits_of_a_micro_expression():
    for p in full_plans(1):
        d = DOMAINS[p.domain]
        assert p.frames <= .5*d.fps and 0 < p.apex < p.frames - 1 and d.noise[0] <= p.noise <= d.noise[1]
    peaks = np.log([p.peak for p in full_plans(1)]); assert abs(np.exp(peaks.mean()) - .0173) < .006

def test_difficulty_is_what_the_text_says():
    g = rng(0, 'test aus'); n = 4000; drawn = [draw_aus('positive', g) for _ in range(n)]
    typical = {au for s in AUS_BY_CLASS['positive'] for au in s}
    assert abs(np.mean([12 in a for a in drawn]) - (.85*.88 + .01)) < .03
    assert abs(np.mean([any(w == .5 for w in a.values()) for a in drawn]) - .15*.92) < .03       # sometimes it is one already there
    assert abs(np.mean([not typical & {au for au, w in a.items() if w == 1} for a in drawn]) - .11) < .04
    assert all(abs(sum(c.values()) - 1) < 1e-6 for c in AUS_BY_CLASS.values())

def test_peak_of_the_motion_is_the_planned_one():
    head = Head.load()
    for p in full_plans(2)[::60]:
        show = perform(replace(p, blink=0.))
        assert peak_motion(head, show.expression[p.apex]) == pytest.approx(p.peak, rel=1e-4)
        assert (show.expression[[0, -1]] == 0).all() and (show.head_pose[0] == 0).all() and len(show) == p.frames

def test_eyes_are_as_far_apart_in_the_crop_as_the_set_has_them():
    iod = eye_distance(Head.load())
    for d in DOMAINS.values():
        for s in (1., .5):
            z = Head.load().vertices[np.unique(Head.load().faces[Head.load().regions == Head.REGIONS.index('eye')])][:, 2].mean()
            uv, _ = crop_camera(d, s).project(torch.tensor([[iod/2, 0, z], [-iod/2, 0, z]], dtype=torch.float32))
            assert float(uv[0, 0] - uv[1, 0]) == pytest.approx(d.iod*s, rel=.01) and .3 < float(uv[0, 1])/(d.height*s) < .45

def test_sensor_noise_has_the_stated_size():
    flat = np.full((200, 200, 3), .5, np.float32)
    for d in DOMAINS.values():
        a = expose(flat, d, 3., 1.02, rng(0)).astype(float)
        assert a.std() == pytest.approx(3, rel=.05) and a.mean() == pytest.approx(127.5*1.02, abs=.2) and a.ndim == (2 if d.grey else 3)

def test_kept_frames_hold_what_annotators_need():
    for p in full_plans(3)[::20]:
        for n in (3, 5, 9):
            k = kept_frames(p, n)
            assert len(k) <= n and k[0] == 0 and k[-1] == p.frames - 1 and (p.apex in k or p.domain == 'smic')
        assert kept_frames(p, None) == list(range(p.frames))
    with pytest.raises(InputError, match='at least 3'): kept_frames(p, 2)

def test_names_and_folders_do_not_collide():
    plans = full_plans(); root = Path('r')
    assert len({clip_folder(p, root) for p in plans}) == 442
    assert {frame_name(p, 3).split('_')[-1][0].isdigit() for p in plans if p.domain == 'samm'} == {True}

def test_nobody_is_in_two_sets():
    faces = [make_person(d, 0, 0, 10)[0].identity for d in DOMAINS] + [make_person('smic', 1, 0, 10)[0].identity]
    assert all(not np.allclose(a, b) for i, a in enumerate(faces) for b in faces[:i])

def test_loaders_read_back_what_was_planned(composite):
    root, clips = composite
    plans = sum((plan_clips(d, 5, s, n) for d, s, n in zip(DOMAINS.values(), TINY['subjects'], TINY['clips'])), [])
    by_folder = {c.frames[0].parent: c for c in clips}
    assert len(clips) == len(plans) == 9
    for p in plans:
        c = by_folder[clip_folder(p, root)]
        assert (c.dataset, c.label) == (p.domain, p.label) and len(c.frames) == 3
        assert c.frames[c.onset].name == frame_name(p, 0) and c.frames[c.offset].name == frame_name(p, p.frames - 1)
        if p.domain == 'smic': assert c.apex is None
        else: assert c.frames[c.apex].name == frame_name(p, p.apex) and c.aus == '+'.join(map(str, sorted(p.aus)))
        h, w = read_image(c.frames[0]).shape[1:]; d = DOMAINS[p.domain]
        assert (h, w) == (round(d.height*.2), round(d.width*.2))
    assert len(load_smic(root/'smic')) == len(load_casme2(root/'casme2')) == len(load_samm(root/'samm')) == 3
    assert Counter(c.label for c in clips if c.dataset == 'smic').keys() <= set(CLASSES)

def test_same_seed_same_bytes_with_any_number_of_workers(composite, tmp_path):
    synthetic_composite(tmp_path/'two', workers=2, **TINY)
    assert composite_hash(tmp_path/'two') == composite_hash(composite[0])

def test_resuming_gives_the_same_bytes_and_keeps_finished_clips(composite, tmp_path):
    root = tmp_path/'copy'; shutil.copytree(composite[0], root)
    clips = load_composite(root); gone, kept = clips[1].frames[0], clips[4].frames[0]; stamp = kept.stat().st_mtime_ns
    shutil.rmtree(gone.parent); (gone.parent.with_name('.part-' + gone.parent.name)).mkdir()       # killed while writing this clip
    manifest = json.loads((root/'synthetic.json').read_text()); (root/'synthetic.json').write_text(json.dumps(manifest | {'sha256': None}))
    assert len(synthetic_composite(root, workers=1, **TINY)) == 9
    assert composite_hash(root) == composite_hash(composite[0]) == json.loads((root/'synthetic.json').read_text())['sha256']
    assert kept.stat().st_mtime_ns == stamp and not list(root.rglob('.part-*'))

def test_another_seed_gives_other_clips_and_is_not_mixed_in(composite, tmp_path):
    with pytest.raises(InputError, match='holds another composite.*seed 5 instead of 6'): synthetic_composite(composite[0], **TINY | dict(seed=6))
    other = dict(TINY, seed=6, subjects=(1, 1, 1), clips=(1, 1, 1))
    synthetic_composite(tmp_path/'other', workers=1, **other)
    assert composite_hash(tmp_path/'other') != composite_hash(composite[0])

@pytest.mark.parametrize('bad', [dict(scale=0), dict(frames=2), dict(subjects=(9, 1, 1))])
def test_impossible_requests_leave_nothing_behind(tmp_path, bad):
    with pytest.raises(InputError): synthetic_composite(tmp_path/'x', **TINY | bad)
    assert not (tmp_path/'x').exists()

def test_apex_differs_from_onset_more_than_noise_does():
    d = DOMAINS['casme2']
    p = replace(plan_clips(d, 0, 2, 10)[0], aus={12: 1.}, peak=.03, noise=0., blink=0.)
    avatar, light = make_person('casme2', 0, 0, 5000)
    moving, still = (render_clip(avatar, light, q, 0, 3, .5) for q in (p, replace(p, peak=1e-9)))
    change = [np.abs(v[p.apex].astype(int) - v[0])[100:150, 30:110].mean() for v in (moving, still)]
    assert change[0] > 1.2*change[1]

def test_sheets_depend_on_their_cells_alone(tmp_path):
    write_sheet(tmp_path/'a.xlsx', [[1, 'x', None]]); time.sleep(2.1); write_sheet(tmp_path/'b.xlsx', [[1, 'x', None]])
    assert (tmp_path/'a.xlsx').read_bytes() == (tmp_path/'b.xlsx').read_bytes()
    assert [c.value for c in openpyxl.load_workbook(tmp_path/'a.xlsx').active[1]][:2] == [1, 'x']

def test_a_clip_is_whole_or_not_there(tmp_path):
    picture = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(cv2.error): write_clip(tmp_path/'clip', {'a.jpg': picture, 'b.nosuchtype': picture})
    assert not (tmp_path/'clip').exists()
