"""gsplat's own reference in PyTorch, run on the CPU: projection, tile lists and compositing are gsplat's functions.

`accumulate` asks for two functions of nerfacc, whose kernels need CUDA, and for the list of blended pairs, which gsplat too finds
with a CUDA kernel. Both are supplied here, and the list is not timed: whatever this reference could be on a CPU, it is not faster.
"""
import sys
import types
from importlib.metadata import version

import torch


def render_weight_from_alpha(alphas, packed_info=None, ray_indices=None, n_rays=None, prefix_trans=None):
    "alpha times transmittance for samples that lie ray by ray, front to back; and the transmittance."
    seen = torch.log1p(-alphas.double())
    log_T = seen.cumsum(0)-seen
    first = torch.cat([ray_indices.new_ones(1, dtype=torch.bool), ray_indices[1:] != ray_indices[:-1]])
    start = torch.zeros(n_rays, dtype=log_T.dtype).index_put((ray_indices[first],), log_T[first])
    T = (log_T-start[ray_indices]).exp().to(alphas)
    return alphas*T, T


def accumulate_along_rays(weights, values=None, ray_indices=None, n_rays=None):
    "Sum of weights times values of each ray."
    v = weights[:, None] if values is None else weights[:, None]*values
    return torch.zeros(n_rays, v.shape[1], dtype=v.dtype).index_add(0, ray_indices, v)


if 'nerfacc' not in sys.modules:
    sys.modules['nerfacc'] = types.ModuleType('nerfacc')
    sys.modules['nerfacc'].render_weight_from_alpha = render_weight_from_alpha
    sys.modules['nerfacc'].accumulate_along_rays = accumulate_along_rays

from gsplat.cuda._torch_impl import _fully_fused_projection, _isect_tiles, _quat_scale_to_covar_preci, accumulate

VERSION = version('gsplat')


def project(means, quats, scales, viewmat, K, width, height):
    "radii, means2d, depths, conics of one camera."
    covariance, _ = _quat_scale_to_covar_preci(quats, scales, True, False, False)
    radii, means2d, depths, conics, _ = _fully_fused_projection(means, covariance, viewmat[None], K[None], width, height)
    return radii, means2d, depths, conics


def tiles(means2d, radii, depths, width, height, size=16):
    "gsplat's tile lists."
    return _isect_tiles(means2d, radii, depths, size, -(-width//size), -(-height//size))


def composite(means2d, conics, opacities, features, gaussian, pixel, width, height):
    "Picture and alpha from blended pairs."
    image, alpha = accumulate(means2d[None], conics[None], opacities[None], features[None], gaussian, pixel, torch.zeros_like(pixel), width, height)
    return image[0], alpha[0, ..., 0]
