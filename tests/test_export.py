"Shards are the same bytes again, hold what the data set holds, and the repository's folder says the truth about itself."
import io, json, shutil, tarfile

import huggingface_hub
import pytest
import torch

from _tiny import disc, tiny_set
from srflow_nb.core import InputError
from srflow_nb.export import card_metadata, decode_pair, export_shards, pair_files, plan_shards, to_hub
from srflow_nb.layout import round_flow, read_manifest

MB = .06


@pytest.fixture(scope='module')
def root(tmp_path_factory): return tiny_set(tmp_path_factory.mktemp('export')/'set', people=4, frames=4)


@pytest.fixture(scope='module')
def shards(root): return export_shards(root, root.parent/'shards', megabytes=MB, progress=False)


def samples(path):
    found = {}
    with tarfile.open(path) as tar:
        for m in tar:
            key, label = m.name.split('.', 1)
            found.setdefault(key, dict(__key__=key))[label] = tar.extractfile(m).read()
    return list(found.values())


def right(item):
    "Whether a pair is what was written."
    seq, t = item['name'].split('/')
    here, then = (disc(int(seq.split('_')[1]), int(t) - 1 + k) for k in (0, 1))
    return torch.equal(item['flow'], round_flow(here['flow'])) and torch.equal(item['mask'], here['labels'] > 0) and torch.equal(item['occlusion'], here['occlusion']) \
        and all((item[k] - f['final']).abs().max() <= .5/255 + 1e-6 for k, f in (('frame1', here), ('frame2', then)))


def test_the_same_set_gives_the_same_bytes(root, shards, tmp_path):
    again = export_shards(root, tmp_path/'again', megabytes=MB, progress=False)
    assert len(shards) > 3 and [(s.name, s.read_bytes()) for s in shards] == [(s.name, s.read_bytes()) for s in again]
    assert (tmp_path/'again/shards.json').read_bytes() == (shards[0].parent/'shards.json').read_bytes()


def test_nothing_in_a_shard_tells_who_packed_it_and_when(shards):
    with tarfile.open(shards[0]) as tar:
        for m in tar: assert (m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) == (0, 0, 0, '', '', 0o644)


def test_every_pair_is_packed_once_and_decodes_to_what_was_written(root, shards):
    names = {'training': [], 'test': []}
    for s in shards:
        for sample in samples(s):
            item = decode_pair(sample)
            assert right(item) and item['valid'].all()
            names[s.name.split('-')[0]].append(item['name'])
    assert sorted(names['training']) == [f'disc_{i}/{t:04d}' for i in (0, 2, 3) for t in (1, 2, 3)] and sorted(names['test']) == [f'disc_1/{t:04d}' for t in (1, 2, 3)]


def test_pairs_are_shuffled(root, shards):
    order = [s['__key__'] for path in shards if path.name.startswith('training') for s in samples(path)]
    assert order != sorted(order)


def test_all_outputs_are_there(shards):
    item = decode_pair(samples(shards[0])[0], frames='clean', outputs=('labels', 'depth', 'flow_backward', 'flow_head', 'note'))
    seq, t = item['name'].split('/'); here, then = (disc(int(seq[-1]), int(t) - 1 + k) for k in (0, 1))
    assert torch.equal(item['labels'], here['labels']) and torch.equal(item['flow_backward'], round_flow(then['flow_backward'])) and torch.equal(item['flow_head'], round_flow(here['flow_head']))
    assert torch.equal(item['depth'].isinf(), here['depth'].isinf())
    t = int(t); assert item['note']['action_units'] == {'12': [round((t - 1)/3, 4), round(t/3, 4)]} and len(item['note']['head_pose']) == 2 and item['note']['frame'] == t


def test_webdataset_reads_our_shards(root, shards):
    wds = pytest.importorskip('webdataset')
    urls = [str(s) for s in shards if s.name.startswith('training')]
    items = list(wds.WebDataset(urls, shardshuffle=False).map(decode_pair))
    assert len(items) == 9 and all(map(right, items))
    rgb = next(iter(wds.WebDataset(urls, shardshuffle=False).decode('torchrgb').to_tuple('final1.png', 'json')))
    assert torch.allclose(rgb[0], items[0]['frame1'], atol=1e-6) and rgb[1]['name'] + f"/{rgb[1]['frame']:04d}" == items[0]['name']
    loader = wds.WebLoader(wds.WebDataset(urls, shardshuffle=False).map(decode_pair), batch_size=3, num_workers=2)
    assert sorted(n for b in loader for n in b['name']) == sorted(i['name'] for i in items)


def test_an_interrupted_export_goes_on_to_the_same_bytes(root, shards, tmp_path):
    out = tmp_path/'cut'
    shutil.copytree(shards[0].parent, out)
    settings = json.loads((out/'shards.json').read_text()); del settings['shards']         # as it stands before the last shard is done
    (out/'shards.json').write_text(json.dumps(settings))
    (out/shards[1].name).unlink(); (out/shards[-1].name).unlink(); (out/f'.{shards[1].name}.4711.tmp.tar').write_bytes(b'half')
    export_shards(root, out, megabytes=MB, progress=False)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {p.name: p.read_bytes() for p in shards[0].parent.iterdir()}


def test_other_settings_and_foreign_folders_are_refused(root, shards, tmp_path):
    for change, what in ((dict(megabytes=1), 'megabytes'), (dict(megabytes=MB, kinds=('final', 'flow')), 'kinds'), (dict(megabytes=MB, seed=1), 'seed')):
        with pytest.raises(InputError, match=what): export_shards(root, shards[0].parent, progress=False, **change)
    (tmp_path/'mine.txt').write_text('precious')
    with pytest.raises(InputError, match='not empty'): export_shards(root, tmp_path, progress=False)
    with pytest.raises(InputError, match='megabytes'): export_shards(root, tmp_path/'x', megabytes=0, progress=False)
    (tmp_path/'bad').mkdir(); (tmp_path/'bad/shards.json').write_text('{')
    with pytest.raises(InputError, match='holds shards'): export_shards(root, tmp_path/'bad', progress=False)


def test_damaged_files_are_not_packed(root, tmp_path):
    bad = shutil.copytree(root, tmp_path/'bad')
    path = bad/'training/flow/disc_0/frame_0002.flo'; data = path.read_bytes()
    path.write_bytes(data[:-1] + b'?')
    with pytest.raises(InputError, match=r'frame_0002.flo: is not what dataset.json says'): export_shards(bad, tmp_path/'out', progress=False)
    path.unlink()
    with pytest.raises(FileNotFoundError, match='frame_0002.flo'): export_shards(bad, tmp_path/'out', progress=False)
    assert [p.name for p in (tmp_path/'out').iterdir()] == ['shards.json']


def test_shards_keep_to_their_size_and_kinds(root, tmp_path):
    manifest = read_manifest(root)
    assert len(plan_shards(manifest, 'training', 1e-6)) == 9 and len(plan_shards(manifest, 'training', 1)) == 1
    assert set(pair_files(manifest, 'training', 'disc_0', 0, ('final', 'flow'))) == {'final1.png', 'final2.png', 'flow.flo'}
    lean = export_shards(root, tmp_path/'lean', kinds=('final', 'flow'), progress=False)
    item = decode_pair(samples(lean[0])[0])
    assert set(item) == {'frame1', 'frame2', 'flow', 'valid', 'name'}
    with pytest.raises(InputError, match="holds no 'clean1'"): decode_pair(samples(lean[0])[0], frames='clean')
    with pytest.raises(InputError, match='kind of file'): export_shards(root, tmp_path/'k', kinds=('finale',), progress=False)


def test_compressed_flow_travels_as_it_is(tmp_path):
    root = tiny_set(tmp_path/'five', people=1, flow_suffix='.flo5')
    assert right(decode_pair(samples(export_shards(root, tmp_path/'out', progress=False)[0])[0]))


@pytest.mark.parametrize('change', [{'flow.flo': b'PIEH'}, {'final1.png': b'\x89PNG'}, {'json': b'{'}, {'json': b'[]'}, {'json': b'{"depth_scale": "x"}'}, {'masks.png': b''}, {'flow.flo': b''}])
def test_damaged_samples_are_named(shards, change):
    sample = samples(shards[0])[0]
    with pytest.raises(InputError, match=sample['__key__']): decode_pair(sample | change)


@pytest.fixture(scope='module')
def hub(root): return to_hub(root, 'somebody/discs', root.parent/'hub', megabytes=MB, progress=False)


def test_the_folder_holds_the_set_and_nothing_else(root, shards, hub):
    assert {p.name for p in hub.iterdir()} == {'README.md', 'dataset.json', 'shards.json', *(s.name for s in shards)}
    assert (hub/'dataset.json').read_bytes() == (root/'dataset.json').read_bytes()
    assert all((hub/s.name).read_bytes() == s.read_bytes() for s in shards)


def test_the_card_is_valid_and_says_the_truth(root, shards, hub):
    card = huggingface_hub.DatasetCard.load(hub/'README.md')
    assert card.data.license == 'cc0-1.0' and card.data.size_categories == 'n<1K' and {'optical-flow', 'webdataset'} <= set(card.data.tags)
    files = {f['split']: sorted(p.name for p in hub.glob(f['path'])) for f in card.data.configs[0]['data_files']}
    assert files == {k: sorted(s.name for s in shards if s.name.startswith(v)) for k, v in (('train', 'training'), ('test', 'test'))}
    manifest = read_manifest(root)
    for text in ('12 pairs', '48x40 px', '4 people', manifest['command'], f"torch {manifest['versions']['torch']}", '`flow_backward.flo`', f"{len(files['train'])-1:06d}}}.tar"): assert text in card.content, text


def test_size_categories_follow_the_number_of_pairs(root):
    manifest = read_manifest(root)
    for n, want in ((999, 'n<1K'), (1000, '1K<n<10K'), (99_999, '10K<n<100K'), (100_000, '100K<n<1M'), (1_000_000, 'n>1M')):
        files = {f'training/flow/s{i//5000}/frame_{i % 5000 + 1:04d}.flo': ['0'*64, 1] for i in range(n)}
        assert card_metadata(manifest | dict(files=files)).size_categories == want


class Recorder:
    "What would have been sent."
    def __init__(self): self.calls = []
    def create_repo(self, repo_id, **kw): self.calls.append(('create', repo_id, kw))
    def upload_folder(self, **kw): self.calls.append(('upload', sorted(p.name for p in kw['folder_path'].iterdir()), kw))


def test_nothing_is_sent_unless_asked_and_then_that_folder(root, hub):
    api = Recorder()
    to_hub(root, 'somebody/discs', hub, megabytes=MB, progress=False, api=api)
    assert api.calls == []
    to_hub(root, 'somebody/discs', hub, megabytes=MB, progress=False, upload=True, api=api)
    (create, repo, how), (upload, files, kw) = api.calls
    assert (create, repo, upload) == ('create', 'somebody/discs', 'upload') and how['private'] and how['repo_type'] == kw['repo_type'] == 'dataset'
    assert files == sorted(p.name for p in hub.iterdir()) and kw['folder_path'] == hub


@pytest.mark.parametrize('repo', ['a b/c', 'a/b/c', '', '../x', 'x' * 200])
def test_bad_repository_names_write_nothing(root, tmp_path, repo):
    with pytest.raises(InputError, match='repository'): to_hub(root, repo, tmp_path/'out', progress=False)
    assert not (tmp_path/'out').exists()


def test_tar_bytes_are_those_of_the_standard(shards):
    "A plain USTAR archive: any tar reads it, in one pass."
    data = shards[0].read_bytes()
    assert data[257:263] == b'ustar\0' and len(data) % 10240 == 0
    with tarfile.open(fileobj=io.BytesIO(data), mode='r|') as tar: assert len(list(tar)) > 8
