"The layout keeps its promises: exact files, safe names, and a check that names everything that is wrong."
import hashlib, json, os, shutil

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from _tiny import Still, disc, tiny_set
from srflow_nb.core import InputError
from srflow_nb.layout import (KINDS, annotation_path, check_manifest, dataset_pairs, frame_files, load_annotation, make_annotation, read_annotation, read_kind,
                              read_manifest, round_flow, safe_path, verify_dataset, write_frame)


@pytest.fixture(scope='module')
def made(tmp_path_factory): return tiny_set(tmp_path_factory.mktemp('layout')/'set')


@pytest.fixture
def root(made, tmp_path): return shutil.copytree(made, tmp_path/'set')


def edit(root, **changes):
    "Change fields of dataset.json."
    manifest = json.loads((root/'dataset.json').read_text())
    (root/'dataset.json').write_text(json.dumps(manifest | changes))


def test_every_kind_comes_back_as_it_was(made):
    for t in (0, 1):
        truth = disc(0, t)
        for kind, path in frame_files(made, 'training', 'disc_0', t).items():
            if kind == 'flow_backward' and t == 0: assert not path.exists(); continue
            back, want = read_kind(kind, path), truth[KINDS[kind]]
            if kind in ('clean', 'final'): assert (back - want).abs().max() <= .5/255 + 1e-6
            elif kind == 'depth': assert torch.equal(back.isinf(), want.isinf()) and (back - want)[~want.isinf()].abs().max() < 1e-4
            else: assert torch.equal(back, round_flow(want) if kind.startswith('flow') else want), kind


def test_hashes_known_while_writing_are_those_of_the_files(tmp_path):
    written = write_frame(frame_files(tmp_path, 'test', 'a', 6), disc(0, 0))
    assert len(written) == len(KINDS) and 'test/flow_backward/a/frame_0007.flo' in written
    for name, (digest, size) in written.items():
        data = (tmp_path/name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest and len(data) == size


def test_the_same_frames_give_the_same_bytes(made, tmp_path):
    again = tiny_set(tmp_path/'again')
    assert json.loads((again/'dataset.json').read_text()) == json.loads((made/'dataset.json').read_text())


def test_labels_are_indices_for_pil_and_colours_for_viewers(made):
    path, labels = frame_files(made, 'training', 'disc_0', 0)['masks'], disc(0, 0)['labels'].numpy()
    with Image.open(path) as im: assert im.mode == 'P' and np.array_equal(np.array(im), labels)
    colours = cv2.imread(str(path))
    assert len(np.unique(colours[labels == 1], axis=0)) == 1 and (colours[labels == 1][0] != colours[labels == 2][0]).any()


def test_head_and_expression_flow_add_up_exactly(made):
    files = frame_files(made, 'training', 'disc_0', 0)
    flow, head = read_kind('flow', files['flow']), read_kind('flow_head', files['flow_head'])
    assert torch.equal(head + (flow - head), flow) and torch.equal(round_flow(flow - head), flow - head)


def test_a_whole_set_has_no_problem(root): assert verify_dataset(root) == []


def test_every_damage_is_named(root):
    files = sorted(read_manifest(root)['files'])
    gone, cut, grown, bit, empty = files[3], files[10], files[17], files[24], files[31]
    (root/gone).unlink()
    for name, change in ((cut, lambda d: d[:len(d)//2]), (grown, lambda d: d + b'x'), (bit, lambda d: d[:-1] + bytes([d[-1] ^ 1])), (empty, lambda d: b'')):
        (root/name).write_bytes(change((root/name).read_bytes()))
    (root/'training/extra.txt').write_text('x')
    lines = verify_dataset(root)
    want = {gone: 'missing', cut: 'truncated', grown: 'altered', bit: 'altered', empty: 'truncated', 'training/extra.txt': 'not part of'}
    assert len(lines) == len(want)
    for name, what in want.items(): assert any(line.startswith(f'{name}: {what}') for line in lines), (name, lines)


@pytest.mark.parametrize('a, b', [('training/clean/disc_0/frame_0001.png', 'training/clean/disc_0/frame_0002.png'),
                                  ('training/flow/disc_0/frame_0001.flo', 'test/flow/disc_1/frame_0002.flo'),
                                  ('training/annotations/disc_0.json', 'training/annotations/disc_2.json')])
def test_swapped_files_say_whose_content_they_hold(root, a, b):
    x, y = (root/a).read_bytes(), (root/b).read_bytes()
    assert x != y
    (root/a).write_bytes(y); (root/b).write_bytes(x)
    assert sorted(verify_dataset(root)) == sorted([f'{a}: swapped: holds the content of {b}', f'{b}: swapped: holds the content of {a}'])


def test_every_single_file_is_watched(root):
    "One changed bit in any file is found, whichever file it is."
    for name in read_manifest(root)['files']:
        data = (root/name).read_bytes()
        (root/name).write_bytes(bytes([data[0] ^ 1]) + data[1:])
        assert [line.split(':')[0] for line in verify_dataset(root)] == [name]
        (root/name).write_bytes(data)


def test_the_manifest_watches_itself(root):
    edit(root, command='rm -rf /')
    assert verify_dataset(root) == ['dataset.json: altered: its own SHA-256 differs']


@pytest.mark.parametrize('name', ['/etc/passwd', '../outside.png', 'training/../../x', 'C:/x', 'a\\b', '~/x', '', 'a/./b', 'x\0', 'training//x', '.hidden', 'nul\n'])
def test_paths_that_lead_outside_are_refused(root, name):
    assert not safe_path(name)
    edit(root, files={name: ['0'*64, 1]})
    with pytest.raises(InputError, match='path inside the folder'): verify_dataset(root)


@pytest.mark.parametrize('change, field', [
    (dict(files=[]), "'files'"), (dict(files={'a.png': 'x'}), 'a.png'), (dict(files={'a.png': ['0'*64, -1]}), 'a.png'), (dict(files={'a.png': ['z'*64, 1]}), 'a.png'),
    (dict(files={'a.png': ['0'*64, True]}), 'a.png'), (dict(splits=[]), 'splits'), (dict(splits={'training': 'disc_0', 'test': []}), 'splits.training'),
    (dict(splits={'training': ['a/b'], 'test': []}), 'splits.training'), (dict(splits={'training': ['a.b'], 'test': []}), 'splits.training'),
    (dict(splits={'training': ['a'], 'test': ['a']}), 'both splits'), (dict(config={}), 'config.width'), (dict(config={'width': 1.5, 'height': 2}), 'config.width'),
    (dict(config={'width': 48, 'height': 10**9}), 'config.height'), (dict(versions=3), 'versions'), (dict(licence=None), 'licence'), (dict(format='other 3'), 'other 3')])
def test_wrong_fields_are_named(root, change, field):
    edit(root, **change)
    with pytest.raises(InputError, match=field) as e: read_manifest(root)
    assert '\n' not in str(e.value) and 'dataset.json' in str(e.value)


def test_a_missing_field_is_named(root):
    for field in ('format', 'licence', 'config', 'command', 'versions', 'splits', 'files'):
        manifest = json.loads((root/'dataset.json').read_text()); del manifest[field]
        (root/'m.json').write_text(json.dumps(manifest))
        with pytest.raises(InputError, match=field): check_manifest(root/'m.json')


def test_the_old_format_says_how_to_make_it_anew(root):
    edit(root, format='srflow-nb 1', command='srflow make-data --pairs 6')
    with pytest.raises(InputError, match='older version.*make it anew: srflow make-data --pairs 6'): read_manifest(root)


@pytest.mark.parametrize('text, why', [('[' * 200_000, 'not valid JSON'), ('{"a":' * 100_000, 'not valid JSON'), ('', 'not valid JSON'), ('3', 'holds int'), ('[]', 'holds list'),
                                       ('{"format": NaN', 'not valid JSON'), ('\xff\xfe', 'not valid JSON'), ('{"a": ' + '9'*10_000 + '}', 'dataset.json')])
def test_json_that_is_none_gives_one_line(tmp_path, text, why):
    (tmp_path/'dataset.json').write_bytes(text.encode('latin-1'))
    with pytest.raises(InputError, match=why) as e: read_manifest(tmp_path)
    assert len(str(e.value)) < 400


def test_folders_that_are_none_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere: no such folder'): read_manifest(tmp_path/'nowhere')
    with pytest.raises(InputError, match='dataset.json is missing'): read_manifest(tmp_path)
    (tmp_path/'config.json').touch()
    with pytest.raises(InputError, match='--resume'): read_manifest(tmp_path)


def test_pairs_are_listed_in_order_with_their_format(tmp_path, made):
    assert dataset_pairs(read_manifest(made), 'training') == [('disc_0', 0, '.flo'), ('disc_0', 1, '.flo'), ('disc_2', 0, '.flo'), ('disc_2', 1, '.flo')]
    five = tiny_set(tmp_path/'five', people=2, flow_suffix='.flo5')
    assert dataset_pairs(read_manifest(five), 'test') == [('disc_1', 0, '.flo5'), ('disc_1', 1, '.flo5')]
    with pytest.raises(InputError, match='training'): dataset_pairs(read_manifest(made), 'trainin')


def test_annotations_come_back_as_numbers(made):
    note = load_annotation(annotation_path(made, dict(split='training', name='disc_0')))
    assert note['camera']['viewmat'].shape == (4, 4) and note['head_pose'].shape == (3, 6) and note['action_units'][12].tolist() == [0, .5, 1]
    assert note['fps'] == 25 and note['stride'] == 1 and note['depth_scale'] == 1e-4 and note['identity'] == {'age': .5} and note['onset'] is None


@pytest.mark.parametrize('change, field', [
    (dict(camera={}), 'camera.viewmat'), (dict(camera={'viewmat': [[1]], 'K': []}), 'camera.viewmat'), (dict(head_pose=[[0]*6]), 'head_pose'), (dict(expression=[[1, 2], [3]]), 'expression'),
    (dict(expression=[['a', 'b']]*3), 'expression'), (dict(action_units={'12': [0, 1]}), 'action_units.12'), (dict(action_units={'smile': [0, 0, 0]}), 'action_units'), (dict(fps='25'), 'fps'),
    (dict(stride=1.5), 'stride'), (dict(depth_scale=None), 'depth_scale'), (dict(files={'../x': ['0'*64, 1]}), 'inside the folder'), (dict(action_units={'12': [0, 1e999, 0]}), 'action_units.12')])
def test_wrong_annotations_name_the_field(root, change, field):
    path = annotation_path(root, dict(split='training', name='disc_0'))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=field): load_annotation(path)
    assert read_annotation(root, dict(split='training', name='disc_0')) is None


def test_what_is_no_number_is_not_annotated():
    plan = dict(name='a', split='test')
    with pytest.raises(InputError, match='NaN or infinite'): make_annotation(plan, {}, Still, np.full((2, 6), np.nan), np.zeros((2, 2)))


def test_a_sequence_is_complete_only_with_every_file_in_its_size(root):
    plan = dict(split='training', name='disc_0')
    assert read_annotation(root, plan)['name'] == 'disc_0'
    path = frame_files(root, 'training', 'disc_0', 1)['depth']; data = path.read_bytes()
    path.write_bytes(data[:-1]); assert read_annotation(root, plan) is None
    path.write_bytes(data); assert read_annotation(root, plan)
    os.remove(path); assert read_annotation(root, plan) is None


def test_frame_numbers_stay_in_order():
    with pytest.raises(InputError, match='9998'): frame_files('r', 'test', 'a', 9999)
    with pytest.raises(InputError, match='flow format'): frame_files('r', 'test', 'a', 0, '.png')
