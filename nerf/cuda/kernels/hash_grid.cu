// The hash grid (Instant-NGP, arXiv 2201.05989, section 3) on a GPU: three loops in two forms.
//
// The plain form interpolates with the trilinear weights, the tangent form with their derivative
// along a direction for each point. Both are linear in the table:
//
//     interpolate:  out[i, l, f]      = sum_c weight_c(i, l) table[index_c(i, l), f]
//     scatter:      table[index_c, f] += weight_c(i, l) grad[i, l, f]        (its transpose)
//     point_grad:   d/dpoint of sum_{l, f} grad[i, l, f] out[i, l, f]
//
// A block of `interpolate` and `scatter` stays within one level, so that what the whole device
// reads and adds to at a time is about one level's part of the table, and all its threads go the
// same way at the branch between hashed and dense. Indices are recomputed wherever they are
// needed. Sums over the levels of a point are one thread's, in their order.
//
// Compiled with FEATURES (F), SCALAR, STORED and ENCODED: the types of points and arithmetic, of the
// table that is read, and of the encoding with all gradients but the points'.
#include "device.cuh"

typedef SCALAR Scalar;
typedef STORED Stored;
typedef ENCODED Encoded;

constexpr int F = FEATURES;
constexpr int MAX_LEVELS = 32;
constexpr unsigned PRIME_Y = 2654435761u;
constexpr unsigned PRIME_Z = 805459861u;

struct Level {
    float scale;
    unsigned resolution;
    unsigned n_entries;  // a power of two where the level is hashed
    unsigned offset;
    unsigned hashed;
};

// Everything a launch needs, by value: nothing to allocate or to copy before it. What a kernel
// writes is `out`: the encoding, the table's gradient or the points' one.
struct Work {
    const Scalar* points;      // [n_points, 3]
    const Scalar* directions;  // [n_points, 3]; the tangent forms alone read it
    const Stored* table;       // [entries, F]
    const Encoded* grad;       // at point * grad_point_stride + column * grad_column_stride
    void* out;
    long long n_points;
    long long grad_point_stride;
    long long grad_column_stride;
    long long out_point_stride;
    long long out_column_stride;
    int n_levels;
    Level levels[MAX_LEVELS];
};

static_assert(sizeof(Work) == WORK_BYTES, "the launcher lays out Work in another way");

// An entry's features, read in one piece, or in pieces of 16 bytes.
struct alignas(F * sizeof(Stored) < 16 ? F * sizeof(Stored) : 16) Entry {
    Stored features[F];
};

struct Place {
    unsigned cell[3];
    Scalar fraction[3];
};

DEVICE Place locate(const Scalar* points, long long i, Scalar scale) {
    Place place;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
        const Scalar at = add_rn(mul_rn(scale, points[3 * i + axis]), Scalar(0.5));
        const Scalar cell = floor(at);
        place.cell[axis] = (unsigned)(int)cell;
        place.fraction[axis] = at - cell;
    }
    return place;
}

// The entry, counted from the table's first, of a corner: bit `axis` of `corner` is its side.
DEVICE unsigned long long entry_of(const Place& place, int corner, const Level& level) {
    const unsigned x = place.cell[0] + (corner & 1);
    const unsigned y = place.cell[1] + (corner >> 1 & 1);
    const unsigned z = place.cell[2] + (corner >> 2);
    unsigned index;
    if (level.hashed) {
        index = (x ^ y * PRIME_Y ^ z * PRIME_Z) & (level.n_entries - 1);
    } else {
        index = x + (y + z * level.resolution) * level.resolution;
        if (index >= level.n_entries) index %= level.n_entries;  // beyond the last vertex
    }
    return (unsigned long long)level.offset + index;
}

DEVICE Scalar side_weight(Scalar fraction, int upper) { return upper ? fraction : 1 - fraction; }

// A corner's trilinear weight, or its derivative when the fractions move by `moved`.
template <bool TANGENT>
DEVICE Scalar weight_of(const Place& place, const Scalar (&moved)[3], int corner) {
    const int up[3] = {corner & 1, corner >> 1 & 1, corner >> 2};
    const Scalar wx = side_weight(place.fraction[0], up[0]);
    const Scalar wy = side_weight(place.fraction[1], up[1]);
    const Scalar wz = side_weight(place.fraction[2], up[2]);
    if constexpr (!TANGENT) return wx * wy * wz;
    const Scalar dx = up[0] ? moved[0] : -moved[0];
    const Scalar dy = up[1] ? moved[1] : -moved[1];
    const Scalar dz = up[2] ? moved[2] : -moved[2];
    return dx * wy * wz + wx * dy * wz + wx * wy * dz;
}

template <bool TANGENT>
DEVICE void moved_by(const Work& work, long long i, Scalar scale, Scalar (&moved)[3]) {
#pragma unroll
    for (int axis = 0; axis < 3; ++axis)
        moved[axis] = TANGENT ? scale * work.directions[3 * i + axis] : Scalar(0);
}

template <bool TANGENT>
DEVICE void interpolate_point(const Work& work) {
    const long long i = thread_x();
    if (i >= work.n_points) return;
    const int column = block_y() * F;
    const Level& level = work.levels[block_y()];
    const Place place = locate(work.points, i, level.scale);
    Scalar moved[3];
    moved_by<TANGENT>(work, i, level.scale, moved);
    const Entry* entries = reinterpret_cast<const Entry*>(work.table);
    Scalar sum[F] = {};
#pragma unroll
    for (int corner = 0; corner < 8; ++corner) {
        const Entry entry = entries[entry_of(place, corner, level)];
        const Scalar weight = weight_of<TANGENT>(place, moved, corner);
#pragma unroll
        for (int f = 0; f < F; ++f) sum[f] += weight * widen(entry.features[f]);
    }
    Encoded* out = static_cast<Encoded*>(work.out) + i * work.out_point_stride;
#pragma unroll
    for (int f = 0; f < F; ++f) narrow(sum[f], out[(column + f) * work.out_column_stride]);
}

DEVICE void read_grad(const Work& work, long long i, int level, Scalar (&grad)[F]) {
    const Encoded* row = work.grad + i * work.grad_point_stride;
#pragma unroll
    for (int f = 0; f < F; ++f) grad[f] = widen(row[(level * F + f) * work.grad_column_stride]);
}

template <bool TANGENT>
DEVICE void scatter_point(const Work& work) {
    const long long i = thread_x();
    if (i >= work.n_points) return;
    const Level& level = work.levels[block_y()];
    const Place place = locate(work.points, i, level.scale);
    Scalar moved[3], grad[F];
    moved_by<TANGENT>(work, i, level.scale, moved);
    read_grad(work, i, block_y(), grad);
    Encoded* table = static_cast<Encoded*>(work.out);
#pragma unroll
    for (int corner = 0; corner < 8; ++corner) {
        const Scalar weight = weight_of<TANGENT>(place, moved, corner);
        Scalar share[F];
#pragma unroll
        for (int f = 0; f < F; ++f) share[f] = weight * grad[f];
        add_at<F>(table + entry_of(place, corner, level) * F, share);
    }
}

// With d_c the product of a corner's features with grad, a level's value is trilinear in the
// fractions: its gradient takes differences of d_c along an axis, its Hessian (tangent form, times
// the direction) mixed differences; the Hessian's diagonal is zero.
template <bool TANGENT>
DEVICE void point_grad_point(const Work& work) {
    const long long i = thread_x();
    if (i >= work.n_points) return;
    const Entry* entries = reinterpret_cast<const Entry*>(work.table);
    Scalar total[3] = {};
    for (int l = 0; l < work.n_levels; ++l) {
        const Level& level = work.levels[l];
        const Scalar scale = level.scale;
        const Place place = locate(work.points, i, scale);
        Scalar grad[F], d[8];
        read_grad(work, i, l, grad);
#pragma unroll
        for (int corner = 0; corner < 8; ++corner) {
            const Entry entry = entries[entry_of(place, corner, level)];
            d[corner] = 0;
#pragma unroll
            for (int f = 0; f < F; ++f) d[corner] += grad[f] * widen(entry.features[f]);
        }
        const Scalar u = place.fraction[0], v = place.fraction[1], w = place.fraction[2];
        const Scalar p = 1 - u, q = 1 - v, r = 1 - w;
        if constexpr (TANGENT) {
            const Scalar xy = (d[3] - d[2] - d[1] + d[0]) * r + (d[7] - d[6] - d[5] + d[4]) * w;
            const Scalar xz = (d[5] - d[4] - d[1] + d[0]) * q + (d[7] - d[6] - d[3] + d[2]) * v;
            const Scalar yz = (d[6] - d[4] - d[2] + d[0]) * p + (d[7] - d[5] - d[3] + d[1]) * u;
            const Scalar* direction = work.directions + 3 * i;
            const Scalar square = scale * scale;
            total[0] += square * (xy * direction[1] + xz * direction[2]);
            total[1] += square * (xy * direction[0] + yz * direction[2]);
            total[2] += square * (xz * direction[0] + yz * direction[1]);
        } else {
            total[0] += scale * (((d[1] - d[0]) * q + (d[3] - d[2]) * v) * r +
                                 ((d[5] - d[4]) * q + (d[7] - d[6]) * v) * w);
            total[1] += scale * (((d[2] - d[0]) * p + (d[3] - d[1]) * u) * r +
                                 ((d[6] - d[4]) * p + (d[7] - d[5]) * u) * w);
            total[2] += scale * (((d[4] - d[0]) * p + (d[5] - d[1]) * u) * q +
                                 ((d[6] - d[2]) * p + (d[7] - d[3]) * u) * v);
        }
    }
    Scalar* out = static_cast<Scalar*>(work.out) + 3 * i;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) out[axis] = total[axis];
}

KERNEL interpolate(PARAMETER Work work) { interpolate_point<false>(work); }
KERNEL interpolate_tangent(PARAMETER Work work) { interpolate_point<true>(work); }
KERNEL scatter(PARAMETER Work work) { scatter_point<false>(work); }
KERNEL scatter_tangent(PARAMETER Work work) { scatter_point<true>(work); }
KERNEL point_grad(PARAMETER Work work) { point_grad_point<false>(work); }
KERNEL point_grad_tangent(PARAMETER Work work) { point_grad_point<true>(work); }
