"""The protocol against scikit-learn, no leakage between subjects, and the job from frames on disk to UF1."""
import json

import cv2
import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.dummy import DummyClassifier
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score
from sklearn.model_selection import LeaveOneGroupOut
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from srflow_nb.core import InputError, rng
from srflow_nb.me_data import CLASSES, Clip
from srflow_nb.me_recognition import cde_report, clip_flows, loso_predict, make_classifier, make_features, recognise, resize_flow, uar, uf1, uf1_interval

@pytest.mark.parametrize('seed', range(10))
@pytest.mark.parametrize('kind', ['text', 'number'])
def test_scores_equal_scikit_learns(seed, kind):
    g = rng(seed, 'labels'); n = int(g.integers(1, 40)); names = list(CLASSES) if kind == 'text' else [0, 1, 2]
    y, p = g.choice(names, n, p=g.dirichlet([1]*3)), g.choice(names, n)
    assert uf1(y, p) == pytest.approx(f1_score(y, p, average='macro', zero_division=0))
    with np.testing.suppress_warnings() as quiet:
        quiet.filter(UserWarning); assert uar(y, p) == pytest.approx(balanced_accuracy_score(y, p))

def test_scores_by_hand():
    assert uf1(list('nnnp'), list('nnpp')) == pytest.approx((4/5 + 2/3)/2) and uar(list('nnnp'), list('nnpp')) == pytest.approx(5/6)
    assert uf1(list('npS'), list('npS')) == uar(list('npS'), list('npS')) == 1 and uf1(list('nn'), list('pp')) == 0
    y = ['negative']*250 + ['positive']*109 + ['surprise']*83                           # always saying 'negative'
    assert uf1(y, ['negative']*442) == pytest.approx(2*250/(442 + 250)/3) and uar(y, ['negative']*442) == pytest.approx(1/3)

@pytest.mark.parametrize('y,p', [([], []), (['a'], ['a', 'b']), ([['a']], [['a']])])
def test_lists_that_do_not_match_are_refused(y, p):
    for score in (uf1, uar):
        with pytest.raises(InputError, match='equally long'): score(y, p)

def sample(n=60, people=7, seed=0):
    g = rng(seed, 'sample'); y = g.choice(CLASSES, n); groups = np.array([f's/{i}' for i in g.integers(people, size=n)])
    return g.normal(size=(n, 4)) + 1.5*(y[:, None] == np.array([*CLASSES, 'x'])), y, groups

def test_loso_equals_the_loop_written_out():
    X, y, groups = sample(); svm = make_pipeline(StandardScaler(), LinearSVC(random_state=0))
    want = np.empty_like(y)
    for train, test in LeaveOneGroupOut().split(X, y, groups): want[test] = clone(svm).fit(X[train], y[train]).predict(X[test])
    np.testing.assert_array_equal(loso_predict(svm, X, y, groups), want)
    np.testing.assert_array_equal(loso_predict(svm, X, y, groups, workers=2), want)

class Memory(ClassifierMixin, BaseEstimator):
    "Knows the label of every clip it saw, and says 'unseen' otherwise."
    def fit(self, X, y): self.seen_, self.classes_ = {tuple(x): c for x, c in zip(X, y)}, np.unique(y); return self
    def predict(self, X): return np.array([self.seen_.get(tuple(x), 'unseen') for x in X])

def test_no_clip_of_a_subject_is_seen_before_the_test():
    X, y, groups = sample()
    assert (loso_predict(Memory(), X, y.astype('<U9'), groups) == 'unseen').all()
    assert (Memory().fit(X, y).predict(X) == y).all()

def test_shuffled_clips_get_the_same_predictions():
    X, y, groups = sample(); order = rng(1, 'order').permutation(len(y)); svm = LinearSVC(random_state=0, C=.01, tol=1e-9, max_iter=100000)
    np.testing.assert_array_equal(loso_predict(svm, X, y, groups)[order], loso_predict(svm, X[order], y[order], groups[order]))

def test_groups_that_cannot_be_left_out_are_named():
    X, y, groups = sample()
    with pytest.raises(InputError, match='at least 2 subjects'): loso_predict(LinearSVC(), X, y, ['a']*len(y))
    with pytest.raises(InputError, match='without subject b only one class'): loso_predict(LinearSVC(), X[:5], list('nnnpp'), list('aacbb'))
    with pytest.raises(InputError, match='59 items for 60 labels'): loso_predict(LinearSVC(), X[1:], y, groups)

def test_report_is_pooled_over_all_and_for_each_set():
    X, y, groups = sample(90); d = np.repeat(['smic', 'casme2', 'samm'], 30); p = rng(2, 'p').choice(CLASSES, 90)
    r = cde_report(y, p, d, groups)
    assert r['uf1'] == pytest.approx(f1_score(y, p, average='macro')) and r['clips'] == 90 and r['classes'] == list(CLASSES)
    np.testing.assert_array_equal(r['confusion'], confusion_matrix(y, p, labels=CLASSES))
    for name in ('smic', 'casme2', 'samm'):
        m = d == name; assert r['per_dataset'][name] == dict(uf1=uf1(y[m], p[m]), uar=uar(y[m], p[m]), clips=30)
    assert r['uf1_interval'][0] < r['uf1'] < r['uf1_interval'][1] and 'uf1_interval' not in cde_report(y, p, d)
    json.dumps(r)                                                        # goes into report.json as it is

def test_interval_is_repeatable_and_shrinks_with_more_people():
    wide = lambda n: np.ptp(uf1_interval(*[a[:n] for a in (Y, P, G)]))
    g = rng(3, 'w'); Y = g.choice(CLASSES, 2000); P = np.where(g.random(2000) < .6, Y, g.choice(CLASSES, 2000)); G = np.arange(2000)//5
    assert uf1_interval(Y, P, G) == uf1_interval(Y, P, G) and wide(2000) < .6*wide(200)

def test_resized_flow_keeps_its_meaning():
    y, x = np.mgrid[:60, :80].astype(np.float32)
    f = np.stack([.02*x + 1, -.03*y])
    for size in ((30, 40), (120, 160), (33, 71)):
        out = resize_flow(f, size)
        back = resize_flow(out, (60, 80))
        assert out.shape == (2, *size) and np.abs(back - f)[:, 4:-4, 4:-4].max() < .05
        assert out[0].mean() == pytest.approx(f[0].mean()*size[1]/80, rel=.02)

def write_clips(root, sizes, shift=(2, 0)):
    "Two-frame clips of a picture that moves by `shift` px."
    clips, g = [], rng(4, 'texture')
    for i, (h, w) in enumerate(sizes):
        a = cv2.GaussianBlur(g.uniform(0, 255, (h + 20, w + 20)).astype(np.float32), (0, 0), 2); a = (a - a.min())/np.ptp(a)*255
        paths = [root/f'{i}_{k}.png' for k in range(3)]
        for k, p in enumerate(paths): dx, dy = (shift if k == 1 else (0, 0)); cv2.imwrite(str(p), a[10-dy:10-dy+h, 10-dx:10-dx+w].astype(np.uint8))
        clips.append(Clip('samm', f'samm/{i}', str(i), CLASSES[i % 3], paths, 0, 1 if i % 2 else None, 2))
    return clips

def dis(a, b):
    grey = [(255*x[0].mean(0)).round().byte().numpy() for x in (a, b)]
    return torch.from_numpy(cv2.DISOpticalFlow_create(2).calc(*grey, None)).permute(2, 0, 1)[None]

def test_clip_flows_go_from_onset_to_apex_or_middle_in_the_common_size(tmp_path):
    clips = write_clips(tmp_path, [(96, 96), (96, 128)])
    f = clip_flows(clips, dis, size=(48, 48))
    assert f.shape == (2, 2, 48, 48) and f.dtype == np.float32
    np.testing.assert_allclose(np.median(f, axis=(2, 3)), [[1, 0], [2*48/128, 0]], atol=.05)
    seen = []
    clip_flows(clips, lambda a, b: seen.append(a.shape) or torch.zeros(1, 2, *a.shape[2:]), limit=64)
    assert seen == [(1, 3, 64, 64), (1, 3, 48, 64)]

def test_frames_and_estimators_that_do_not_fit_are_named(tmp_path):
    clips = write_clips(tmp_path, [(40, 40)]); cv2.imwrite(str(clips[0].frames[1]), np.zeros((30, 40, 3), np.uint8))
    with pytest.raises(InputError, match=r'0_1.png: 40x30 px, the clip.s onset has 40x40'): clip_flows(clips, dis)
    with pytest.raises(InputError, match='estimator: gave shape'): clip_flows(write_clips(tmp_path, [(44, 44)]), lambda a, b: torch.zeros(1, 2, 3, 3))

def flow_fields(n=48, people=8, noise=.1, seed=0):
    "Each class moves another place in another direction."
    g = rng(seed, 'flow'); y = np.array([CLASSES[i % 3] for i in range(n)]); yy, xx = np.mgrid[:64, :64]
    bump = lambda cy, cx: np.exp(-((yy - cy)**2 + (xx - cx)**2)/50.)
    kinds = dict(negative=np.stack([0*bump(20, 32), bump(20, 32)]), positive=np.stack([0*bump(45, 20), -bump(45, 20) - bump(45, 44)]),
                 surprise=np.stack([0*bump(18, 32), -bump(18, 18) - bump(18, 46)]))
    X = np.stack([kinds[c]*g.uniform(.5, 1.5) for c in y]) + g.normal(0, noise, (n, 2, 64, 64)) + g.normal(0, .5, (n, 2, 1, 1))
    return X.astype(np.float32), y, np.array([f's/{i*people//n}' for i in range(n)])

def test_classifier_recognises_clear_motion_and_not_none():
    X, y, groups = flow_fields()
    assert uf1(y, loso_predict(make_classifier(), X, y, groups)) > .95
    assert uf1(y, loso_predict(make_classifier(), np.zeros_like(X), y, groups)) < .4

def test_features_beforehand_or_inside_each_fold_are_the_same():
    X, y, groups = flow_fields(n=24, people=4, noise=1.)
    c = make_classifier()
    np.testing.assert_array_equal(loso_predict(c[1:], make_features().fit_transform(X), y, groups), loso_predict(c, X, y, groups))

def test_recognise_compares_estimators_on_the_same_clips(tmp_path):
    clips = [c for c in write_clips(tmp_path, [(40, 40)]*9)]
    r = recognise(clips, dict(zero=lambda a, b: torch.zeros(1, 2, *a.shape[2:]), dis=dis), size=(32, 32))
    assert list(r) == ['zero', 'dis'] and r['dis']['seconds'] > 0
    assert set(r['dis']) == {'uf1', 'uar', 'clips', 'per_dataset', 'confusion', 'classes', 'uf1_interval', 'seconds'}
    assert r['zero']['clips'] == 9 and sum(map(sum, r['zero']['confusion'])) == 9
    guess = recognise(clips, dict(zero=lambda a, b: torch.zeros(1, 2, *a.shape[2:])), make_pipeline(make_features(), DummyClassifier(strategy='constant', constant='negative')))
    assert guess['zero']['uar'] == pytest.approx(1/3)
