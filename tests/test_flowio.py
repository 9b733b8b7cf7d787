"Flow files: exact round trips, other people's readers, and broken files that give one clear line."
import hashlib
import struct
import tracemalloc

import cv2
import h5py
import numpy as np
import pytest
import torch

from srflow_nb.core import InputError, rng
from srflow_nb.flowio import (DEPTH_SCALE, FLO_MAGIC, FLOW_FORMATS, LABEL_COLORS, read_depth, read_flow, read_image, read_labels, read_mask, write_depth,
                              write_flow, write_image, write_labels, write_mask)

EXACT = ('.flo', '.pfm', '.flo5')


def field(h=24, w=32, scale=5., seed=0):
    f = torch.from_numpy(rng(seed, 'flowio').normal(size=(2, h, w)) * scale).float()
    f[:, 2:5, 3:9] = torch.nan
    return f


def same(a, b): return a.shape == b.shape and torch.equal(torch.nan_to_num(a, 12345.), torch.nan_to_num(b, 12345.))


@pytest.mark.parametrize('suffix', EXACT)
@pytest.mark.parametrize('size', [(24, 32), (1, 1), (1, 7), (9, 1), (101, 67)])
def test_round_trip_is_exact(tmp_path, suffix, size):
    f = field(*size)
    write_flow(tmp_path/f'a{suffix}', f)
    back = read_flow(tmp_path/f'a{suffix}')
    assert same(back, f) and back.dtype == torch.float32 and back.is_contiguous()


def test_kitti_rounds_to_64ths_and_keeps_validity(tmp_path):
    f = field()
    write_flow(tmp_path/'a.png', f)
    back = read_flow(tmp_path/'a.png')
    assert torch.equal(back.isnan(), f.isnan()) and (back - f).abs().nan_to_num().max() <= 1/128 + 1e-6
    write_flow(tmp_path/'b.png', back)
    assert same(read_flow(tmp_path/'b.png'), back)          # a second trip changes nothing


def test_kitti_bytes_are_those_of_the_devkit(tmp_path):
    "u = 1, v = -2 at a valid pixel: red 32832, green 32640, blue 1 (devkit: (v - 2^15)/64)."
    f = torch.tensor([1., -2.]).view(2, 1, 1)
    write_flow(tmp_path/'a.png', f)
    assert cv2.imread(str(tmp_path/'a.png'), cv2.IMREAD_UNCHANGED)[0, 0].tolist() == [1, 32640, 32832]     # OpenCV: blue first


@pytest.mark.parametrize('value, ok', [(511.98, True), (-512., True), (512., False), (-512.02, False)])
def test_kitti_refuses_what_it_cannot_hold(tmp_path, value, ok):
    f = torch.full((2, 3, 3), value)
    if ok: write_flow(tmp_path/'a.png', f); assert (read_flow(tmp_path/'a.png') - f).abs().max() <= 1/128 + 1e-4
    else:
        with pytest.raises(InputError, match='KITTI PNG holds'): write_flow(tmp_path/'a.png', f)
        assert not list(tmp_path.iterdir())


def test_opencv_reads_our_flo_and_we_read_opencvs(tmp_path):
    f = torch.nan_to_num(field(), 0.)
    write_flow(tmp_path/'a.flo', f)
    assert np.array_equal(cv2.readOpticalFlow(str(tmp_path/'a.flo')), f.permute(1, 2, 0).numpy())
    cv2.writeOpticalFlow(str(tmp_path/'b.flo'), f.permute(1, 2, 0).contiguous().numpy())
    assert same(read_flow(tmp_path/'b.flo'), f) and (tmp_path/'a.flo').read_bytes() == (tmp_path/'b.flo').read_bytes()


def test_flo_by_hand(tmp_path):
    (tmp_path/'a.flo').write_bytes(struct.pack('<fii', 202021.25, 2, 1) + struct.pack('<4f', 1, 2, 1e10, 3))
    f = read_flow(tmp_path/'a.flo')
    assert f[:, 0, 0].tolist() == [1., 2.] and f[:, 0, 1].isnan().all()       # one unknown component: the pixel is unknown


def test_pfm_is_bottom_up_in_both_byte_orders(tmp_path):
    rows = np.arange(2 * 3 * 3, dtype=np.float32).reshape(2, 3, 3)           # first row in the file is the bottom one
    for name, scale, order in (('l', '-1.0', '<f4'), ('b', '1.0', '>f4'), ('e', '-1e0', '<f4')):
        (tmp_path/f'{name}.pfm').write_bytes(f'PF\n3 2\n{scale}\n'.encode() + rows.astype(order).tobytes())
        f = read_flow(tmp_path/f'{name}.pfm')
        assert f[:, 1, 0].tolist() == [0., 1.] and f[:, 0, 2].tolist() == [15., 16.]
    write_flow(tmp_path/'ours.pfm', f)
    assert np.array_equal(cv2.imread(str(tmp_path/'ours.pfm'), cv2.IMREAD_UNCHANGED)[..., 2], f[0].numpy())   # OpenCV: blue first


def test_flo5_is_what_spring_reads(tmp_path):
    f = field()
    write_flow(tmp_path/'a.flo5', f)
    with h5py.File(tmp_path/'a.flo5') as h: assert h['flow'].shape == (24, 32, 2) and h['flow'].compression == 'gzip'
    write_flow(tmp_path/'b.flo5', f)
    assert (tmp_path/'a.flo5').read_bytes() == (tmp_path/'b.flo5').read_bytes()      # same flow, same bytes


def test_inputs_of_every_usual_kind(tmp_path):
    f = field()
    for i, g in enumerate((f.numpy(), f[None], f.double(), f.clone().requires_grad_(), f.flip(1).flip(1))):
        write_flow(str(tmp_path/f'{i}.FLO'), g)
        assert same(read_flow(str(tmp_path/f'{i}.FLO')), f)


@pytest.mark.parametrize('bad', [torch.zeros(3, 4, 4), torch.zeros(2, 0, 4), torch.full((2, 3, 3), torch.inf), torch.zeros(4, 4)])
def test_what_is_no_flow_is_not_written(tmp_path, bad):
    with pytest.raises(InputError, match='a.flo: '): write_flow(tmp_path/'a.flo', bad)
    assert not list(tmp_path.iterdir())


def test_missing_file_folder_and_suffix_name_the_path(tmp_path):
    for read in (read_flow, read_image):
        with pytest.raises(FileNotFoundError, match='nowhere.png'): read(tmp_path/'nowhere.png')
        (tmp_path/'dir.png').mkdir(exist_ok=True)
        with pytest.raises(InputError, match='folder'): read(tmp_path/'dir.png')
    with pytest.raises(InputError, match="no flow format '.exr'"): read_flow('a.exr')
    with pytest.raises(InputError, match="no picture format '.exr'"): write_image('a.exr', torch.zeros(3, 2, 2))


HUGE = {'a.flo': FLO_MAGIC + struct.pack('<ii', 2**31 - 1, 2**31 - 1) + bytes(64), 'b.flo': FLO_MAGIC + struct.pack('<ii', 65536, 65536),
        'a.pfm': b'PF\n999999999 999999999\n-1\n' + bytes(64), 'zero.flo': FLO_MAGIC + struct.pack('<ii', 0, 0), 'minus.flo': FLO_MAGIC + struct.pack('<ii', -1, -8) + bytes(64),
        'nan.flo': struct.pack('<f', float('nan')) + bytes(20), 'short.flo': FLO_MAGIC + b'\x01', 'text.flo': b'hello', 'a2.pfm': b'PF\n2 2\n0\n' + bytes(48),
        'grey.pfm': b'Pf\n2 2\n-1\n' + bytes(16), 'dots.pfm': b'PF\n2 2\n...\n' + bytes(48), 'text.png': b'hello', 'text.flo5': b'hello', 'sig.flo5': b'\x89HDF\r\n\x1a\n' + bytes(80)}


@pytest.mark.parametrize('name', list(HUGE) + [f'empty{s}' for s in FLOW_FORMATS])
def test_lying_headers_cost_nothing_and_say_why(tmp_path, name):
    (tmp_path/name).write_bytes(HUGE.get(name, b''))
    tracemalloc.start()
    with pytest.raises(InputError, match=name): read_flow(tmp_path/name)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def png(w, h, bits=16, color=2, data=b''):
    import zlib
    chunk = lambda n, d: struct.pack('>I', len(d)) + n + d + struct.pack('>I', zlib.crc32(n + d))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, bits, color, 0, 0, 0)) + chunk(b'IDAT', data) + chunk(b'IEND', b'')


def test_a_png_that_claims_too_much_is_refused_before_decoding(tmp_path):
    (tmp_path/'a.png').write_bytes(png(10**6, 10**6))
    with pytest.raises(InputError, match='cannot hold them'): read_flow(tmp_path/'a.png')
    with pytest.raises(InputError, match='pixels'): read_image(tmp_path/'a.png')
    (tmp_path/'b.png').write_bytes(png(4, 4, bits=8))
    with pytest.raises(InputError, match='16 bits'): read_flow(tmp_path/'b.png')


def test_flo5_that_claims_too_much_or_points_elsewhere_is_refused(tmp_path):
    with h5py.File(tmp_path/'huge.flo5', 'w') as h: h.create_dataset('flow', (10**6, 10**6, 2), 'f4', chunks=(64, 64, 2), compression='gzip')
    with h5py.File(tmp_path/'other.flo5', 'w') as h: h['flow'] = np.ones((3, 3, 2), 'f4')
    with h5py.File(tmp_path/'link.flo5', 'w') as h: h['flow'] = h5py.ExternalLink(str(tmp_path/'other.flo5'), 'flow')
    with h5py.File(tmp_path/'ext.flo5', 'w') as h: h.create_dataset('flow', (3, 3, 2), 'f4', external=[(str(tmp_path/'raw.bin'), 0, 72)])
    with h5py.File(tmp_path/'none.flo5', 'w') as h: h['flo'] = np.ones((3, 3, 2), 'f4')
    with h5py.File(tmp_path/'int.flo5', 'w') as h: h['flow'] = np.ones((3, 3, 2), 'i4')
    (tmp_path/'raw.bin').write_bytes(b'secret' * 12)
    for name, why in (('huge', 'cannot hold it'), ('link', "no dataset 'flow'"), ('ext', 'another file'), ('none', "no dataset 'flow'"), ('int', 'expected floats')):
        with pytest.raises(InputError, match=why): read_flow(tmp_path/f'{name}.flo5')


@pytest.mark.parametrize('suffix', list(FLOW_FORMATS))
def test_truncated_files_are_refused_at_every_length(tmp_path, suffix):
    write_flow(tmp_path/f'a{suffix}', field())
    data = (tmp_path/f'a{suffix}').read_bytes(); bad = tmp_path/f'cut{suffix}'
    for n in sorted({0, 1, 4, 11, 12, 13, len(data) - 1, *rng(0, 'cut').integers(0, len(data), 40).tolist()}):
        bad.write_bytes(data[:n])
        with pytest.raises(InputError, match='cut'): read_flow(bad)
    if suffix in ('.flo', '.pfm'):
        bad.write_bytes(data + b'x')
        with pytest.raises(InputError, match='bytes'): read_flow(bad)


@pytest.mark.parametrize('suffix', list(FLOW_FORMATS))
def test_mutated_files_give_the_right_array_or_one_error(tmp_path, suffix):
    "PNG and .flo5 carry checksums: never a wrong array. .flo and .pfm cannot know, but a changed header is found."
    f = field(); write_flow(tmp_path/f'a{suffix}', f)
    ref = read_flow(tmp_path/f'a{suffix}'); data = (tmp_path/f'a{suffix}').read_bytes(); g = rng(0, 'mutate', suffix)
    bad = tmp_path/f'm{suffix}'; refused = 0
    for _ in range(300):
        m = bytearray(data)
        at = g.integers(12) if suffix == '.flo' else 3 + g.integers(5) if suffix == '.pfm' else g.integers(len(m))
        m[at] ^= int(g.integers(1, 256))
        bad.write_bytes(m)
        try: out = read_flow(bad)
        except InputError as e: refused += 1; assert str(bad) in str(e) and '\n' not in str(e)
        else: assert same(out, ref), f'byte {at} changed, and another array came back'
    assert refused > 200


def test_a_changed_pixel_changes_only_itself(tmp_path):
    f = torch.nan_to_num(field(), 0.); write_flow(tmp_path/'a.flo', f)
    data = bytearray((tmp_path/'a.flo').read_bytes())
    data[12 + 8*(5*32 + 7):16 + 8*(5*32 + 7)] = struct.pack('<f', 99.)
    (tmp_path/'a.flo').write_bytes(data)
    want = f.clone(); want[0, 5, 7] = 99.
    assert same(read_flow(tmp_path/'a.flo'), want)


@pytest.mark.parametrize('suffix', ['.png', '.bmp'])
def test_lossless_pictures_round_trip(tmp_path, suffix):
    a = torch.from_numpy(rng(0, 'img').integers(0, 256, (3, 13, 17), dtype=np.uint8)) / 255
    write_image(tmp_path/f'a{suffix}', a)
    assert torch.equal(read_image(tmp_path/f'a{suffix}'), a)


def test_pictures_of_every_kind_have_three_channels(tmp_path):
    g16 = np.array([[0, 1, 65535]], np.uint16); rgba = np.zeros((2, 3, 4), np.uint8); rgba[..., 2] = 255; rgba[..., 3] = 7
    cv2.imwrite(str(tmp_path/'g.png'), g16); cv2.imwrite(str(tmp_path/'a.png'), rgba); cv2.imwrite(str(tmp_path/'c.png'), np.stack([g16]*3, -1))
    assert torch.allclose(read_image(tmp_path/'g.png'), torch.tensor([0., 1/65535, 1.]).expand(3, 1, 3), atol=1e-9)
    assert read_image(tmp_path/'a.png')[:, 0, 0].tolist() == [1., 0., 0.]          # red, alpha dropped
    assert torch.allclose(read_image(tmp_path/'c.png')[1, 0], torch.tensor([0., 1/65535, 1.]), atol=1e-9)
    (tmp_path/'renamed.png').write_bytes(cv2.imencode('.jpg', np.full((8, 8, 3), 128, np.uint8))[1].tobytes())
    assert abs(read_image(tmp_path/'renamed.png').mean() - 128/255) < .01          # by content, not by name


def test_phone_orientation_is_applied(tmp_path):
    from PIL import Image
    exif = Image.Exif(); exif[0x0112] = 6                                          # rotate 90 degrees clockwise to view
    Image.new('RGB', (20, 10)).save(tmp_path/'a.jpg', exif=exif)
    assert read_image(tmp_path/'a.jpg').shape == (3, 20, 10)


@pytest.mark.parametrize('suffix', ['.png', '.jpg', '.webp', '.bmp'])
def test_damaged_pictures_are_refused_or_read_in_their_size(tmp_path, suffix):
    write_image(tmp_path/f'a{suffix}', torch.from_numpy(rng(0, 'dmg').random((3, 24, 32))))
    data = (tmp_path/f'a{suffix}').read_bytes(); bad = tmp_path/f'm{suffix}'; g = rng(1, 'dmg', suffix)
    for n in (1, 20, len(data) // 2, len(data) - 30):
        bad.write_bytes(data[:n])
        with pytest.raises(InputError, match='m' + suffix): read_image(bad)
    for _ in range(150):
        m = bytearray(data); m[g.integers(len(m))] ^= int(g.integers(1, 256)); bad.write_bytes(m)
        try: out = read_image(bad)
        except InputError: continue
        assert out.shape[0] == 3 and out.min() >= 0 and out.max() <= 1
        if suffix == '.png': assert torch.equal(out, read_image(tmp_path/'a.png'))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    f = field(); write_flow(tmp_path/'a.png', f); before = (tmp_path/'a.png').read_bytes()
    with pytest.raises(InputError): write_flow(tmp_path/'a.png', f * 1e4)
    assert (tmp_path/'a.png').read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ['a.png']


# ---- labels, masks, depth ------------------------------------------------------------------------------------------

@pytest.mark.parametrize('size', [(1, 1), (24, 33), (7, 8)])
def test_labels_and_masks_come_back_exactly(tmp_path, size):
    from PIL import Image
    labels = torch.from_numpy(rng(0, 'labels').integers(0, len(LABEL_COLORS), size))
    for dtype in (torch.uint8, torch.int64, torch.int32):
        write_labels(tmp_path/'a.png', labels.to(dtype))
        assert torch.equal(read_labels(tmp_path/'a.png').long(), labels) and read_labels(tmp_path/'a.png').dtype == torch.uint8
    with Image.open(tmp_path/'a.png') as im:
        assert im.mode == 'P' and np.array_equal(np.array(im), labels.numpy())
        assert np.array_equal(np.array(im.convert('RGB')), np.array(LABEL_COLORS)[labels.numpy()])      # and as a picture
    write_mask(tmp_path/'m.png', labels > 2)
    assert torch.equal(read_mask(tmp_path/'m.png'), labels > 2)
    assert np.array_equal(cv2.imread(str(tmp_path/'m.png'), cv2.IMREAD_UNCHANGED), (labels > 2).numpy()*np.uint8(255))


def test_labels_of_others_are_read(tmp_path):
    from PIL import Image
    a = rng(0, 'others').integers(0, 5, (9, 11)).astype(np.uint8)
    cv2.imwrite(str(tmp_path/'grey.png'), a); assert np.array_equal(read_labels(tmp_path/'grey.png').numpy(), a)
    im = Image.fromarray(a, 'P'); im.putpalette([1, 2, 3]*256); im.save(tmp_path/'pal.png', bits=8)
    assert np.array_equal(read_labels(tmp_path/'pal.png').numpy(), a)


@pytest.mark.parametrize('scale', [DEPTH_SCALE, .001, 1/4096])
def test_depth_is_off_by_half_a_step_at_most(tmp_path, scale):
    d = torch.from_numpy(rng(0, 'depth').uniform(.3, 2.5, (20, 30))).float(); d[3:6, 4:9] = torch.inf; d[0, 0] = torch.nan
    write_depth(tmp_path/'d.png', d, scale)
    back = read_depth(tmp_path/'d.png', scale)
    assert torch.equal(back.isinf(), ~d.isfinite()) and (back - d)[d.isfinite()].abs().max() <= scale/2 + 1e-6
    write_depth(tmp_path/'e.png', back, scale); assert (tmp_path/'d.png').read_bytes() == (tmp_path/'e.png').read_bytes()
    steps = cv2.imread(str(tmp_path/'d.png'), cv2.IMREAD_UNCHANGED)
    assert steps.dtype == np.uint16 and np.array_equal(steps == 0, (~d.isfinite()).numpy())


def test_depth_of_nothing_is_nothing(tmp_path):
    write_depth(tmp_path/'d.png', torch.full((4, 5), torch.inf))
    assert read_depth(tmp_path/'d.png').isinf().all()


@pytest.mark.parametrize('write, bad, why', [
    (write_labels, torch.full((3, 3), 9), 'labels are'), (write_labels, torch.full((3, 3), -1), 'labels are'), (write_labels, torch.zeros(3, 3), 'labels are'), (write_labels, torch.zeros(1, 3, 3).int(), 'shape'),
    (write_mask, torch.zeros(3, 3), 'expected bool'), (write_mask, torch.zeros(0, 3).bool(), 'shape'), (write_depth, torch.full((3, 3), 7.), 'depth from'),
    (write_depth, torch.full((3, 3), -1.), 'depth from'), (write_depth, torch.zeros(3, 3), 'depth from'), (write_depth, torch.ones(3), 'shape')])
def test_what_does_not_fit_is_not_written(tmp_path, write, bad, why):
    with pytest.raises(InputError, match=f'a.png: .*{why}'): write(tmp_path/'a.png', bad)
    assert not list(tmp_path.iterdir())


def test_one_kind_of_png_is_not_taken_for_another(tmp_path):
    write_labels(tmp_path/'labels.png', torch.ones(4, 4).int()); write_mask(tmp_path/'mask.png', torch.ones(4, 4).bool())
    write_depth(tmp_path/'depth.png', torch.ones(4, 4)); write_flow(tmp_path/'flow.png', torch.ones(2, 4, 4)); write_image(tmp_path/'image.png', torch.ones(3, 4, 4))
    takes = {read_labels: {'labels', 'mask'}, read_mask: {'mask'}, read_depth: {'depth'}, read_flow: {'flow'}}      # grey labels are labels
    for read, own in takes.items():
        for name in ('labels', 'mask', 'depth', 'flow', 'image'):
            if name in own: read(tmp_path/f'{name}.png'); continue
            with pytest.raises(InputError, match=f'{name}.png: PNG with'): read(tmp_path/f'{name}.png')
    with pytest.raises(InputError, match='holds label 1; expected 0 to 0'): read_labels(tmp_path/'labels.png', count=1)


def test_writers_tell_the_hash_of_what_they_wrote(tmp_path):
    jobs = [(write_flow, 'a.flo', field()), (write_flow, 'a.png', field()), (write_flow, 'a.flo5', field()), (write_flow, 'a.pfm', field()), (write_image, 'b.png', torch.rand(3, 5, 6)),
            (write_image, 'b.jpg', torch.rand(3, 5, 6)), (write_labels, 'c.png', torch.ones(3, 4).int()), (write_mask, 'd.png', torch.ones(3, 4).bool()), (write_depth, 'e.png', torch.ones(3, 4))]
    for write, name, value in jobs: assert write(tmp_path/name, value) == hashlib.sha256((tmp_path/name).read_bytes()).hexdigest()


def test_bytes_at_hand_are_read_as_the_file_is(tmp_path):
    write_flow(tmp_path/'a.flo', field()); write_depth(tmp_path/'d.png', torch.ones(3, 4)); write_image(tmp_path/'i.png', torch.rand(3, 5, 6))
    for read, name in ((read_flow, 'a.flo'), (read_depth, 'd.png'), (read_image, 'i.png')):
        assert same(read('elsewhere/' + name, data=(tmp_path/name).read_bytes()), read(tmp_path/name))
        with pytest.raises(InputError, match='elsewhere/' + name): read('elsewhere/' + name, data=b'')


def test_shortcuts_of_writers_lead_to_the_same_bytes(tmp_path):
    "Float planes, and flow without unknown pixels, take a faster way."
    from srflow_nb.viz import to_uint8
    p = torch.from_numpy(rng(0, 'short').normal(.5, .5, (3, 9, 11))).float()
    write_image(tmp_path/'a.png', p); write_image(tmp_path/'b.png', p.double()); write_image(tmp_path/'c.png', to_uint8(p))
    assert (tmp_path/'a.png').read_bytes() == (tmp_path/'b.png').read_bytes() == (tmp_path/'c.png').read_bytes()
    p[1, 2, 3] = torch.nan; write_image(tmp_path/'n.png', p); assert abs(read_image(tmp_path/'n.png')[1, 2, 3] - .5) < .01
    with pytest.raises(InputError, match='divide by 255'): write_image(tmp_path/'x.png', p.nan_to_num()*255)
    for bad in (2e9, -2e9):
        with pytest.raises(InputError, match='1e9 px'): write_flow(tmp_path/'a.flo', torch.full((2, 3, 3), bad))
    with pytest.raises(InputError, match='infinite'): write_flow(tmp_path/'a.flo', torch.tensor([torch.nan, torch.inf, 1., 1.]).view(2, 1, 2))


def test_flo5_with_a_missing_piece_is_refused(tmp_path):
    "HDF5 fills what is not stored with zeros: a wrong array without a word."
    with h5py.File(tmp_path/'a.flo5', 'w') as h: h.create_dataset('flow', (32, 32, 2), 'f4', chunks=(16, 16, 2))[:16] = 1
    with pytest.raises(InputError, match='2 of its 4 pieces'): read_flow(tmp_path/'a.flo5')


def test_pictures_that_unpack_to_less_than_they_claim_are_refused_before_decoding(tmp_path):
    import zlib
    (tmp_path/'a.png').write_bytes(png(3000, 3000, 8, 2, zlib.compress(bytes(200_000))))
    tracemalloc.start()
    with pytest.raises(InputError, match='3000 x 3000 pixels; .* cannot hold them'): read_image(tmp_path/'a.png')
    assert tracemalloc.get_traced_memory()[1] < 3_000_000
    tracemalloc.stop()
