"""A tile rasterizer in NVIDIA Warp, for the CPU: what a user gets who writes the textbook kernels in that language.

One thread a pixel walks its tile's list, as the CUDA rasterizers do; binning (count, scan, fill, radix sort, ranges) is Warp's
too. The backward kernel is written by hand and walks the list from the back. Warp runs CPU kernels on one thread.
"""
import torch
import warp as wp

wp.config.log_level = wp.LOG_ERROR
wp.config.enable_backward = False                # the adjoint below is our own; Warp's would have to record every pair
wp.set_module_options(dict(fast_math=True, optimization_level=3, enable_backward=False))
wp.init()
SIZE = wp.constant(16)
CHANNELS = 6
vec = wp.types.vector(length=CHANNELS, dtype=wp.float32)
_tile_box_k = wp.constant(1.e-3)


@wp.func
def box(m: wp.vec2, con: wp.vec3, o: float, z: float, nx: int, ny: int):
    "First tile and one past the last, empty where nothing shows."
    det = con[0]*con[2]-con[1]*con[1]
    if o < 1./255. or z <= .01 or det <= 0.: return wp.vec4i(0, 0, 0, 0)
    k = 2.*wp.log(255.*o)/det
    hx, hy = wp.sqrt(k*con[2])+_tile_box_k, wp.sqrt(k*con[0])+_tile_box_k
    x0 = wp.clamp(int(wp.floor((m[0]-hx)/float(SIZE))), 0, nx)
    y0 = wp.clamp(int(wp.floor((m[1]-hy)/float(SIZE))), 0, ny)
    x1 = wp.clamp(int(wp.floor((m[0]+hx)/float(SIZE)))+1, x0, nx)
    y1 = wp.clamp(int(wp.floor((m[1]+hy)/float(SIZE)))+1, y0, ny)
    return wp.vec4i(x0, y0, x1, y1)


@wp.kernel
def count(m: wp.array(dtype=wp.vec2), con: wp.array(dtype=wp.vec3), o: wp.array(dtype=float), z: wp.array(dtype=float),
          nx: int, ny: int, n: wp.array(dtype=int)):
    g = wp.tid()
    b = box(m[g], con[g], o[g], z[g], nx, ny)
    n[g] = (b[2]-b[0])*(b[3]-b[1])


@wp.kernel
def fill(m: wp.array(dtype=wp.vec2), con: wp.array(dtype=wp.vec3), o: wp.array(dtype=float), z: wp.array(dtype=float),
         nx: int, ny: int, first: wp.array(dtype=int), keys: wp.array(dtype=wp.int64), ids: wp.array(dtype=int)):
    g = wp.tid()
    b, at = box(m[g], con[g], o[g], z[g], nx, ny), int(first[g])
    depth = wp.int64(wp.cast(z[g], wp.uint32))          # the bits of a positive float sort like the number
    for y in range(b[1], b[3]):
        for x in range(b[0], b[2]):
            keys[at] = (wp.int64(y*nx+x) << wp.int64(32)) | depth
            ids[at] = g
            at += 1


@wp.kernel
def ranges(keys: wp.array(dtype=wp.int64), total: int, start: wp.array(dtype=int), stop: wp.array(dtype=int)):
    e = wp.tid()
    t = int(keys[e] >> wp.int64(32))
    if e == 0 or int(keys[e-1] >> wp.int64(32)) != t: start[t] = e
    if e == total-1 or int(keys[e+1] >> wp.int64(32)) != t: stop[t] = e+1


@wp.kernel
def draw(m: wp.array(dtype=wp.vec2), con: wp.array(dtype=wp.vec3), o: wp.array(dtype=float), f: wp.array(dtype=vec),
         start: wp.array(dtype=int), stop: wp.array(dtype=int), ids: wp.array(dtype=int), nx: int,
         image: wp.array2d(dtype=vec), T_end: wp.array2d(dtype=float), last: wp.array2d(dtype=int)):
    y, x = wp.tid()
    t = y//SIZE*nx+x//SIZE
    T, out, end = float(1.), vec(0.), int(start[t])
    for e in range(start[t], stop[t]):
        g = ids[e]
        dx, dy = float(x)+.5-m[g][0], float(y)+.5-m[g][1]
        sigma = .5*(con[g][0]*dx*dx+con[g][2]*dy*dy)+con[g][1]*dx*dy
        if sigma > 5.6: continue
        al = wp.min(o[g]*wp.exp(-sigma), .999)
        if al < 1./255.: continue
        if T*(1.-al) <= 1.e-4: break
        out += f[g]*(al*T)
        T *= 1.-al
        end = e+1
    image[y, x] = out
    T_end[y, x] = T
    last[y, x] = end


@wp.kernel
def undraw(m: wp.array(dtype=wp.vec2), con: wp.array(dtype=wp.vec3), o: wp.array(dtype=float), f: wp.array(dtype=vec),
           start: wp.array(dtype=int), ids: wp.array(dtype=int), nx: int, T_end: wp.array2d(dtype=float), last: wp.array2d(dtype=int),
           v_image: wp.array2d(dtype=vec), v_alpha: wp.array2d(dtype=float),
           v_m: wp.array(dtype=wp.vec2), v_con: wp.array(dtype=wp.vec3), v_o: wp.array(dtype=float), v_f: wp.array(dtype=vec)):
    y, x = wp.tid()
    t = y//SIZE*nx+x//SIZE
    T, v, va, behind = float(T_end[y, x]), v_image[y, x], v_alpha[y, x], float(0.)
    lost = va*T_end[y, x]
    n = last[y, x]-start[t]
    for i in range(n):
        g = ids[last[y, x]-1-i]
        dx, dy = float(x)+.5-m[g][0], float(y)+.5-m[g][1]
        sigma = .5*(con[g][0]*dx*dx+con[g][2]*dy*dy)+con[g][1]*dx*dy
        if sigma > 5.6: continue
        full = wp.exp(-sigma)
        al = wp.min(o[g]*full, .999)
        if al < 1./255.: continue
        T /= 1.-al
        q = wp.dot(v, f[g])
        v_f[g] += v*(al*T)
        v_al = T*q+(lost-behind)/(1.-al)
        behind += q*al*T
        if o[g]*full <= .999:
            s = -v_al*al
            v_o[g] += v_al*full
            v_con[g] += wp.vec3(.5*dx*dx, dx*dy, .5*dy*dy)*s
            v_m[g] += wp.vec2(con[g][0]*dx+con[g][1]*dy, con[g][1]*dx+con[g][2]*dy)*(-s)


class WarpSplat(torch.autograd.Function):
    "The kernels as a differentiable operation of PyTorch."
    @staticmethod
    def forward(ctx, means2d, conics, opacities, features, depths, width, height):
        n, nx, ny = len(means2d), -(-width//16), -(-height//16)
        m, con, f = [wp.from_torch(t.detach().contiguous(), dtype=d) for t, d in ((means2d, wp.vec2), (conics, wp.vec3), (features, vec))]
        o, z = wp.from_torch(opacities.detach()), wp.from_torch(depths.detach())
        number = wp.zeros(n, dtype=int, device='cpu')
        wp.launch(count, n, [m, con, o, z, nx, ny, number], device='cpu')
        first = wp.zeros(n, dtype=int, device='cpu')
        wp.utils.array_scan(number, first, inclusive=False)
        total = int(first.numpy()[-1]+number.numpy()[-1])
        keys, ids = wp.empty(2*total, dtype=wp.int64, device='cpu'), wp.empty(2*total, dtype=int, device='cpu')   # twice: the sort's room
        wp.launch(fill, n, [m, con, o, z, nx, ny, first, keys, ids], device='cpu')
        wp.utils.radix_sort_pairs(keys, ids, total)
        start, stop = (wp.zeros(nx*ny, dtype=int, device='cpu') for _ in range(2))
        wp.launch(ranges, total, [keys, total, start, stop], device='cpu')
        image, T = torch.empty(height, width, CHANNELS), torch.empty(height, width)
        last = wp.empty((height, width), dtype=int, device='cpu')
        wp.launch(draw, (height, width), [m, con, o, f, start, stop, ids, nx, wp.from_torch(image, dtype=vec), wp.from_torch(T), last], device='cpu')
        ctx.saved = (m, con, o, f, start, ids, nx, wp.from_torch(T), last), T, (means2d.shape, conics.shape, opacities.shape, features.shape)
        return image, 1-T

    @staticmethod
    def backward(ctx, v_image, v_alpha):
        args, T, shapes = ctx.saved
        grads = [torch.zeros(s) for s in shapes]
        types = [wp.vec2, wp.vec3, wp.float32, vec]
        wp.launch(undraw, T.shape, [*args, wp.from_torch(v_image.contiguous(), dtype=vec), wp.from_torch(v_alpha.contiguous()),
                                    *[wp.from_torch(g, dtype=d) for g, d in zip(grads, types)]], device='cpu')
        return *grads, None, None, None


def splat(means2d, conics, opacities, features, depths, width, height):
    "As `srflow_nb.splat.splat`, for six channels."
    return WarpSplat.apply(means2d, conics, opacities, features, depths, width, height)


VERSION = wp.__version__
