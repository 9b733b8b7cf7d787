"""gsplat's own CUDA kernels on a CPU: an oracle for machines without a GPU.

The kernels are cut out of the installed gsplat's `.cu` files and compiled by g++ beside `cuda.h`, which plays the card: a thread is
a fiber, a block runs after the other. `Kernels` has the functions of gsplat's compiled extension, so gsplat's own Python code
(`rasterization`, its autograd functions) runs on top of it, unchanged. It checks rules, lists, gradients and calls; it says
nothing about speed, and nothing about the fast-math arithmetic of a real card."""
import ctypes, hashlib, math, os, re, shutil, subprocess, sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
CHANNELS = 1, 3, 8, 16
SOURCES = 'ProjectionEWA3DGSFused.cu', 'IntersectTile.cu', 'RasterizeToPixels3DGSFwd.cu', 'RasterizeToPixels3DGSBwd.cu'


def kernels(cuda):
    "The text of all kernels, with the two things changed that C++ alone cannot say."
    found = ''
    for name in SOURCES:
        for kernel in re.finditer(r'^(template <[^>]*>\n)?__global__ void .*?^}\n', (cuda/'csrc'/name).read_text(), flags=re.S | re.M): found += kernel[0] + '\n'
    found = found.replace('extern __shared__ int s[];', 'int *s = cpu::shared.data();')
    return re.sub(r'\(uint32_t\)(floor|ceil)\((tile_[^()]*)\)', r'to_uint(\1(\2))', found)


def build(folder):
    "The compiled kernels, from `folder` if they were compiled before; None where there is no Linux with g++."
    import gsplat
    cuda = Path(gsplat.__file__).parent/'cuda'
    text = kernels(cuda)
    name = hashlib.sha256((text+(HERE/'cuda.h').read_text()+(HERE/'entry.cpp').read_text()).encode()).hexdigest()[:16]
    library = Path(folder)/f'{name}.so'
    if not library.exists():
        if sys.platform != 'linux' or not shutil.which('g++'): return None
        (Path(folder)/'cooperative_groups').mkdir(exist_ok=True)
        (Path(folder)/'kernels.inc').write_text(text)
        for header in ('cooperative_groups.h', 'cooperative_groups/reduce.h'): (Path(folder)/header).write_text('#include "cuda.h"\n')
        include = [HERE, folder, cuda/'include', cuda/'csrc/third_party/glm']
        half = library.with_suffix(f'.{os.getpid()}')
        subprocess.run(['g++', '-std=c++17', '-O2', '-ffp-contract=off', '-w', '-shared', '-fPIC', *[f'-I{i}' for i in include], '-o', str(half), str(HERE/'entry.cpp')], check=True)
        half.replace(library)
    return ctypes.CDLL(str(library))


def garbage(*shape, dtype=torch.float32):
    "What a kernel does not write must not be read: memory as `torch.empty` may give it."
    return torch.full(shape, 1e30 if dtype == torch.float32 else 2**30, dtype=dtype)


def bits(n): return int(math.log2(n)) + 1


class Kernels:
    "The functions of gsplat's compiled extension that `rasterization` and `rasterize_to_pixels` need, on CPU tensors."
    CameraModelType = type('CameraModelType', (), dict(PINHOLE=0))
    PINHOLE = 0

    def __init__(self, library): self.library = library

    def call(self, name, *args):
        "Call a C function: tensors as pointers, floats as floats, numbers as unsigned."
        assert all(a.is_contiguous() and a.device.type == 'cpu' for a in args if torch.is_tensor(a)), name
        getattr(self.library, name)(*[ctypes.c_void_p(a.data_ptr()) if torch.is_tensor(a) else None if a is None else ctypes.c_float(a) if isinstance(a, float)
                                      else ctypes.c_uint32(a) for a in args])

    def projection_ewa_3dgs_fused_fwd(self, means, covars, quats, scales, opacities, viewmats, Ks, w, h, eps2d, near, far, clip, compensate, model):
        C, N = len(viewmats), len(means)
        assert covars is None and not compensate and model == self.PINHOLE and N
        res = garbage(C, N, 2, dtype=torch.int32), garbage(C, N, 2), garbage(C, N), garbage(C, N, 3)
        self.call('project_fwd', C, N, means, quats, scales, opacities, viewmats, Ks, w, h, float(eps2d), float(near), float(far), float(clip), *res)
        return *res, None

    def projection_ewa_3dgs_fused_bwd(self, means, covars, quats, scales, viewmats, Ks, w, h, eps2d, model, radii, conics, compensations, v_means2d, v_depths, v_conics,
                                      v_compensations, wants_viewmats):
        grads = [torch.zeros_like(t) for t in (means, quats, scales)]
        v_viewmats = torch.zeros_like(viewmats) if wants_viewmats else None
        self.call('project_bwd', len(viewmats), len(means), means, quats, scales, viewmats, Ks, w, h, float(eps2d), radii, conics, v_means2d, v_depths, v_conics, *grads, v_viewmats)
        return grads[0], None, *grads[1:], v_viewmats

    def intersect_tile(self, means2d, radii, depths, image_ids, gaussian_ids, I, size, nx, ny, sort, segmented):
        shape = I, means2d.shape[-2], means2d, radii, depths
        tiles = torch.zeros_like(depths, dtype=torch.int32)
        self.call('intersect', *shape, None, size, nx, ny, bits(nx*ny), bits(I), tiles, None, None)
        ends = tiles.flatten().long().cumsum(0)
        keys, ids = torch.empty(int(ends[-1]), dtype=torch.int64), torch.empty(int(ends[-1]), dtype=torch.int32)
        self.call('intersect', *shape, ends, size, nx, ny, bits(nx*ny), bits(I), None, keys, ids)
        keys, order = keys.sort(stable=True)                   # as a radix sort is
        return tiles, keys, ids[order]

    def intersect_offset(self, keys, I, nx, ny):
        res = garbage(I, ny, nx, dtype=torch.int32) if len(keys) else torch.zeros(I, ny, nx, dtype=torch.int32)
        self.call('offsets', len(keys), keys, I, nx*ny, bits(nx*ny), res)
        return res

    def shape(self, means2d, conics, colors, opacities, backgrounds, masks, w, h, size, offsets, ids):
        assert colors.shape[-1] in CHANNELS and masks is None
        return (colors.shape[-1], math.prod(offsets.shape[:-2]), means2d.shape[-2], len(ids), means2d, conics, colors, opacities, backgrounds,
                w, h, size, offsets.shape[-1], offsets.shape[-2], offsets, ids)

    def rasterize_to_pixels_3dgs_fwd(self, means2d, conics, colors, *more):
        w, h, offsets = more[3], more[4], more[6]
        res = [garbage(*offsets.shape[:-2], h, w, n) for n in (colors.shape[-1], 1)] + [garbage(*offsets.shape[:-2], h, w, dtype=torch.int32)]
        self.call('blend_fwd', *self.shape(means2d, conics, colors, *more), *res)
        return res

    def rasterize_to_pixels_3dgs_bwd(self, means2d, conics, colors, opacities, *more):
        *more, alpha, last, v_image, v_alpha, absgrad = more
        grads = [torch.zeros_like(t) for t in (means2d, conics, colors, opacities)]
        if len(more[-1]): self.call('blend_bwd', *self.shape(means2d, conics, colors, opacities, *more), alpha, last, v_image, v_alpha, *grads)
        return None, *grads
