// Doors into gsplat's kernels: what its launch functions do, with pointers instead of tensors.
#include "cuda.h"
#include "Common.h"
#include "Utils.cuh"

namespace gsplat {
namespace cg = cooperative_groups;
#include "kernels.inc"       // cut out of the installed gsplat's .cu files

#define EACH_CHANNEL_COUNT ONE(1) ONE(3) ONE(8) ONE(16)

template <class Block> void each_block(uint32_t images, uint32_t nx, uint32_t ny, uint32_t size, uint32_t shared, Block block) {
    cpu::block_dim = {size, size, 1};
    cpu::shared.assign(size * size * shared, 0);
    for (uint32_t i = 0; i < images; ++i)
        for (uint32_t y = 0; y < ny; ++y)
            for (uint32_t x = 0; x < nx; ++x) { cpu::block_at = {i, y, x}; cpu::run_block(block); }
}

extern "C" {
void project_fwd(uint32_t C, uint32_t N, const float *means, const float *quats, const float *scales, const float *opacities, const float *viewmats,
                 const float *Ks, uint32_t w, uint32_t h, float eps2d, float near, float far, float clip, int32_t *radii, float *means2d, float *depths, float *conics) {
    for (cpu::grid_rank = 0; cpu::grid_rank < C * N; ++cpu::grid_rank)
        projection_ewa_3dgs_fused_fwd_kernel<float>(1, C, N, means, nullptr, quats, scales, opacities, viewmats, Ks, w, h, eps2d, near, far, clip, PINHOLE,
                                                    radii, means2d, depths, conics, nullptr);
}

void project_bwd(uint32_t C, uint32_t N, const float *means, const float *quats, const float *scales, const float *viewmats, const float *Ks, uint32_t w, uint32_t h,
                 float eps2d, const int32_t *radii, const float *conics, const float *v_means2d, const float *v_depths, const float *v_conics,
                 float *v_means, float *v_quats, float *v_scales, float *v_viewmats) {
    for (cpu::grid_rank = 0; cpu::grid_rank < C * N; ++cpu::grid_rank)
        projection_ewa_3dgs_fused_bwd_kernel<float>(1, C, N, means, nullptr, quats, scales, viewmats, Ks, w, h, eps2d, PINHOLE, radii, conics, nullptr,
                                                    v_means2d, v_depths, v_conics, nullptr, v_means, nullptr, v_quats, v_scales, v_viewmats);
}

void intersect(uint32_t I, uint32_t N, const float *means2d, const int32_t *radii, const float *depths, const int64_t *cum, uint32_t size, uint32_t nx, uint32_t ny,
               uint32_t tile_bits, uint32_t image_bits, int32_t *tiles, int64_t *keys, int32_t *ids) {
    for (cpu::grid_rank = 0; cpu::grid_rank < I * N; ++cpu::grid_rank)
        intersect_tile_kernel<float>(false, I, N, 0, nullptr, nullptr, means2d, radii, depths, cum, size, nx, ny, tile_bits, image_bits, tiles, keys, ids);
}

void offsets(uint32_t n, const int64_t *keys, uint32_t I, uint32_t tiles, uint32_t bits, int32_t *out) {
    for (cpu::grid_rank = 0; cpu::grid_rank < n; ++cpu::grid_rank) intersect_offset_kernel(n, keys, I, tiles, bits, out);
}

void blend_fwd(uint32_t channels, uint32_t I, uint32_t N, uint32_t n, const float *means2d, const float *conics, const float *colors, const float *opacities,
               const float *backgrounds, uint32_t w, uint32_t h, uint32_t size, uint32_t nx, uint32_t ny, const int32_t *offsets, const int32_t *ids,
               float *image, float *alpha, int32_t *last) {
#define ONE(C) if (channels == C) each_block(I, nx, ny, size, 7, [=] { rasterize_to_pixels_3dgs_fwd_kernel<C, float>(I, N, n, false, (const vec2 *)means2d, \
        (const vec3 *)conics, colors, opacities, backgrounds, nullptr, w, h, size, nx, ny, offsets, ids, image, alpha, last); });
    EACH_CHANNEL_COUNT
#undef ONE
}

void blend_bwd(uint32_t channels, uint32_t I, uint32_t N, uint32_t n, const float *means2d, const float *conics, const float *colors, const float *opacities,
               const float *backgrounds, uint32_t w, uint32_t h, uint32_t size, uint32_t nx, uint32_t ny, const int32_t *offsets, const int32_t *ids,
               const float *alpha, const int32_t *last, const float *v_image, const float *v_alpha, float *v_means2d, float *v_conics, float *v_colors, float *v_opacities) {
#define ONE(C) if (channels == C) each_block(I, nx, ny, size, 7 + C, [=] { rasterize_to_pixels_3dgs_bwd_kernel<C, float>(I, N, n, false, (const vec2 *)means2d, \
        (const vec3 *)conics, colors, opacities, backgrounds, nullptr, w, h, size, nx, ny, offsets, ids, alpha, last, v_image, v_alpha, nullptr, \
        (vec2 *)v_means2d, (vec3 *)v_conics, v_colors, v_opacities); });
    EACH_CHANNEL_COUNT
#undef ONE
}
}
} // namespace gsplat
