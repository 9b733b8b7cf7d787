"The rules of compositing in float64, one pixel at a time: what the benchmark counts with and holds every picture against."
import numpy as np
from numba import njit, prange

ALPHA_MAX, ALPHA_MIN, T_MIN = .999, 1/255, 1e-4
SIZE = 16                     # tile side [px]; the lists do not change a picture, they only save work
MARGIN = 1e-5                 # a pixel whose decision hangs on less than this (relative) may go either way in float32


def tile_lists(s, size=SIZE):
    "Front-to-back list of each tile as (start, ids), from the boxes outside which a splat stays below 1/255."
    m2, (a, b, c), o = s['means2d'].numpy().astype('f8'), s['conics'].numpy().astype('f8').T, s['opacities'].numpy().astype('f8')
    nx, ny = -(-s['width']//size), -(-s['height']//size)
    det = a*c-b*b
    order = np.argsort(s['depths'].numpy(), kind='stable')
    order = order[((s['depths'].numpy() > .01) & (o >= ALPHA_MIN) & (det > 0))[order]]
    reach = 2*np.log(255*o[order])/det[order]
    half = np.sqrt(np.stack([reach*c[order], reach*a[order]], 1))+1e-3
    lo = np.clip(np.floor((m2[order]-half)/size), 0, [nx, ny]).astype('i8')
    hi = np.clip(np.floor((m2[order]+half)/size)+1, lo, [nx, ny]).astype('i8')
    wide = (hi-lo)[:, 0]
    count = wide*(hi-lo)[:, 1]
    which = np.repeat(np.arange(len(order)), count)
    k = np.arange(len(which))-(np.cumsum(count)-count)[which]
    tile = (lo[which, 1]+k//wide[which])*nx+lo[which, 0]+k % wide[which]
    by_tile = np.argsort(tile, kind='stable')
    return np.concatenate([[0], np.cumsum(np.bincount(tile, minlength=nx*ny))]), order[which[by_tile]]


@njit(parallel=True, cache=True, error_model='numpy')
def _draw(start, ids, means2d, conics, opacities, features, image, alpha, pairs, touchy):
    nx = -(-alpha.shape[1]//SIZE)
    for p in prange(alpha.size):
        y, x = p//alpha.shape[1], p % alpha.shape[1]
        t, T = y//SIZE*nx+x//SIZE, 1.
        for e in range(start[t], start[t+1]):
            g = ids[e]
            dx, dy = x+.5-means2d[g, 0], y+.5-means2d[g, 1]
            sigma = .5*(conics[g, 0]*dx*dx+conics[g, 2]*dy*dy)+conics[g, 1]*dx*dy
            if sigma > 5.6: continue
            al = min(opacities[g]*np.exp(-sigma), ALPHA_MAX)
            if abs(al*255-1) < MARGIN: touchy[y, x] = True
            if al < ALPHA_MIN: continue
            behind = T*(1-al)
            if abs(behind/T_MIN-1) < MARGIN: touchy[y, x] = True
            if behind <= T_MIN: break
            for k in range(features.shape[1]): image[y, x, k] += T*al*features[g, k]
            pairs[y, x] += 1
            T = behind
        alpha[y, x] = 1-T


def draw(s):
    "Picture, alpha, blended pairs of each pixel, and the pixels that a rounding of 1e-5 could decide otherwise."
    h, w = s['height'], s['width']
    image, alpha = np.zeros((h, w, s['features'].shape[1])), np.zeros((h, w))
    pairs, touchy = np.zeros((h, w), 'i4'), np.zeros((h, w), 'bool')
    start, ids = tile_lists(s)
    _draw(start, ids, *[s[k].numpy().astype('f8') for k in ('means2d', 'conics', 'opacities', 'features')], image, alpha, pairs, touchy)
    return image, alpha, pairs, touchy


@njit(cache=True, error_model='numpy')
def _pairs(start, ids, means2d, conics, opacities, height, width, gaussian, pixel, fill):
    n, nx = 0, -(-width//SIZE)
    for y in range(height):
        for x in range(width):
            t, T = y//SIZE*nx+x//SIZE, 1.
            for e in range(start[t], start[t+1]):
                g = ids[e]
                dx, dy = x+.5-means2d[g, 0], y+.5-means2d[g, 1]
                al = min(opacities[g]*np.exp(-.5*(conics[g, 0]*dx*dx+conics[g, 2]*dy*dy)-conics[g, 1]*dx*dy), ALPHA_MAX)
                if al < ALPHA_MIN: continue
                if T*(1-al) <= T_MIN: break
                T *= 1-al
                if fill: gaussian[n], pixel[n] = g, y*width+x
                n += 1
    return n


def blended_pairs(s):
    "The (Gaussian, pixel) of every blended pair, pixel by pixel, front to back."
    start, ids = tile_lists(s)
    a = [s[k].numpy().astype('f8') for k in ('means2d', 'conics', 'opacities')]
    none = np.zeros(1, 'i8')
    n = _pairs(start, ids, *a, s['height'], s['width'], none, none, False)
    gaussian, pixel = np.zeros(n, 'i8'), np.zeros(n, 'i8')
    _pairs(start, ids, *a, s['height'], s['width'], gaussian, pixel, True)
    return gaussian, pixel
