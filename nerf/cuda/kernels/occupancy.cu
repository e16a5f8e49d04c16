// What an occupancy grid remembers of the densities that it was shown (Instant-NGP, arXiv
// 2201.05989, appendix C). A cell that was drawn more than once takes the largest density, so that
// the order of the threads does not matter.
#include "device.cuh"

struct Work {
    const long long* cells;  // [n_draws]
    const float* density;    // [n_draws], not negative
    float* seen;             // [n_cells], the largest density of this update; -1 before
    float* remembered;       // [n_cells]
    long long n_draws;
    long long n_cells;
    float decay;
};

static_assert(sizeof(Work) == WORK_BYTES, "the launcher lays out Work in another way");

KERNEL look(PARAMETER Work work) {
    const long long draw = thread_x();
    if (draw >= work.n_draws) return;
    max_at(work.seen + work.cells[draw], work.density[draw]);
}

KERNEL remember(PARAMETER Work work) {
    const long long cell = thread_x();
    if (cell >= work.n_cells) return;
    const float seen = work.seen[cell];
    if (seen >= 0.0f) work.remembered[cell] = fmaxf(work.remembered[cell] * work.decay, seen);
}
