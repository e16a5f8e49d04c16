// The march along rays through the occupied cells of a box: count what each ray meets, then fill.
// A thread is a ray. The arithmetic is float32 in the order of `march_reference`, nothing
// contracted, so that a midpoint on a cell's face falls on the same side.
#include "device.cuh"

struct Work {
    const float* rays_o;            // [n_rays, 3]
    const float* rays_d;            // [n_rays, 3]
    const float* jitter;            // [n_rays]; null cuts from the entry point on
    const unsigned char* occupied;  // [X, Y, Z]; null is a full box
    long long* counts;              // [n_rays], written by march_count
    const long long* offsets;       // [n_rays + 1], read by march_fill, which writes the rest
    long long* ray_indices;         // [n_samples]
    float* t_starts;
    float* t_ends;
    long long n_rays;
    float low[3];
    float high[3];
    float cells_per_unit[3];
    int resolution[3];
    float step_size;
    float near;
};

static_assert(sizeof(Work) == WORK_BYTES, "the launcher lays out Work in another way");

// Distances at which a ray enters and leaves the box (slab method); an empty interval where it
// misses. A ray inside a face's plane gives nan there, and the slab puts no bound on it.
DEVICE void intersect(const Work& work, const float* o, const float* d, float& enter,
                      float& leave) {
    const float infinite = infinity();
    enter = -infinite;
    leave = infinite;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
        const float inverse = 1.0f / d[axis];
        const float to_low = (work.low[axis] - o[axis]) * inverse;
        const float to_high = (work.high[axis] - o[axis]) * inverse;
        if (to_low == to_low && to_high == to_high) {
            enter = fmaxf(enter, fminf(to_low, to_high));
            leave = fminf(leave, fmaxf(to_low, to_high));
        }
    }
    enter = fmaxf(enter, work.near);
    if (!(leave > enter && leave < infinite)) enter = leave = work.near;
}

DEVICE bool is_occupied(const Work& work, const float* o, const float* d, float middle) {
    if (work.occupied == nullptr) return true;
    long long index = 0;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
        const float at = add_rn(o[axis], mul_rn(middle, d[axis]));
        int cell = (int)floorf(mul_rn(add_rn(at, -work.low[axis]), work.cells_per_unit[axis]));
        const int last = work.resolution[axis] - 1;
        cell = cell < 0 ? 0 : cell > last ? last : cell;
        index = index * work.resolution[axis] + cell;
    }
    return work.occupied[index] != 0;
}

template <bool FILL>
DEVICE void march_ray(const Work& work) {
    const long long ray = thread_x();
    if (ray >= work.n_rays) return;
    const float* o = work.rays_o + 3 * ray;
    const float* d = work.rays_d + 3 * ray;
    const float shift = work.jitter == nullptr ? 1.0f : work.jitter[ray];
    long long at = FILL ? work.offsets[ray] : 0;
    float t_near, t_far;
    intersect(work, o, d, t_near, t_far);
    float start = t_near;
    for (int k = 0; start < t_far; ++k) {
        const float edge = add_rn(t_near, mul_rn((float)k + shift, work.step_size));
        const float end = fminf(fmaxf(edge, t_near), t_far);
        if (end > start && is_occupied(work, o, d, (start + end) * 0.5f)) {
            if constexpr (FILL) {
                work.ray_indices[at] = ray;
                work.t_starts[at] = start;
                work.t_ends[at] = end;
            }
            ++at;
        }
        start = end;
    }
    if constexpr (!FILL) work.counts[ray] = at;
}

KERNEL march_count(PARAMETER Work work) { march_ray<false>(work); }
KERNEL march_fill(PARAMETER Work work) { march_ray<true>(work); }
