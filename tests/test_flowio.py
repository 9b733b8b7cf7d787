"Flow files: exact round trips, other people's readers, and broken files that give one clear line."
import struct
import tracemalloc

import cv2
import h5py
import numpy as np
import pytest
import torch

from srflow_nb.core import InputError, rng
from srflow_nb.flowio import FLO_MAGIC, FLOW_FORMATS, read_flow, read_image, write_flow, write_image

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
