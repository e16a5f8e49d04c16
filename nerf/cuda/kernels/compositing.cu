// Volume rendering's quadrature along packed rays (NeRF, arXiv 2003.08934, equation 3), its
// gradient, and the choice of the samples that a pixel can show.
//
//     tau_i = density_i length_i,  T_i = exp(-sum_{j < i} tau_j),  w_i = T_i (1 - exp(-tau_i))
//
// What depends on the samples before it, or behind it, is one thread's for a whole ray; sums over
// channels are spread over more threads.
#include "device.cuh"

struct Work {
    const float* density;         // [n_samples]
    const float* lengths;         // [n_samples]
    const float* values;          // [n_samples, n_channels]
    const long long* offsets;     // [n_rays + 1]
    const long long* ray_indices; // [n_samples]
    unsigned char* keep;          // [n_samples], zeros before
    long long* counts;            // [n_rays]
    float* weights;               // [n_samples]
    float* after;                 // [n_samples], the transmittance behind each sample, T_{i+1}
    float* accumulated;           // [n_rays, n_channels]
    float* transmittance;         // [n_rays]
    const float* grad_accumulated;
    const float* grad_transmittance;
    const float* grad_weights;
    float* slope;                 // [n_samples], dL/dw_i through the weights and what they sum
    float* grad_density;
    float* grad_values;
    long long n_rays;
    long long n_samples;
    int n_channels;
    float transmittance_threshold;
    float alpha_threshold;
};

static_assert(sizeof(Work) == WORK_BYTES, "the launcher lays out Work in another way");

// A ray ends where less light than the threshold is left. Said as what is not seen, so that a
// density of nan stays in and spoils the image openly.
KERNEL visible(PARAMETER Work work) {
    const long long ray = thread_x();
    if (ray >= work.n_rays) return;
    float left = 1.0f;
    long long kept = 0;
    for (long long i = work.offsets[ray]; i < work.offsets[ray + 1]; ++i) {
        if (left <= work.transmittance_threshold) break;
        const float tau = work.density[i] * work.lengths[i];
        if (!(-expm1f(-tau) < work.alpha_threshold)) {
            work.keep[i] = 1;
            ++kept;
        }
        left *= expf(-tau);
    }
    work.counts[ray] = kept;
}

KERNEL weigh(PARAMETER Work work) {
    const long long ray = thread_x();
    if (ray >= work.n_rays) return;
    float left = 1.0f;
    for (long long i = work.offsets[ray]; i < work.offsets[ray + 1]; ++i) {
        const float tau = work.density[i] * work.lengths[i];
        work.weights[i] = -left * expm1f(-tau);
        left *= expf(-tau);
        work.after[i] = left;
    }
    work.transmittance[ray] = left;
}

// A thread is a channel of a ray.
KERNEL accumulate(PARAMETER Work work) {
    const long long at = thread_x();
    if (at >= work.n_rays * work.n_channels) return;
    const long long ray = at / work.n_channels;
    const long long channel = at - ray * work.n_channels;
    float sum = 0.0f;
    for (long long i = work.offsets[ray]; i < work.offsets[ray + 1]; ++i)
        sum += work.weights[i] * work.values[i * work.n_channels + channel];
    work.accumulated[at] = sum;
}

// A thread is a sample.
KERNEL accumulate_backward(PARAMETER Work work) {
    const long long i = thread_x();
    if (i >= work.n_samples) return;
    const float* grad = work.grad_accumulated + work.ray_indices[i] * work.n_channels;
    const float weight = work.weights[i];
    float slope = work.grad_weights[i];
    for (int channel = 0; channel < work.n_channels; ++channel) {
        const long long at = i * work.n_channels + channel;
        slope += grad[channel] * work.values[at];
        work.grad_values[at] = weight * grad[channel];
    }
    work.slope[i] = slope;
}

// With g_i = dL/dw_i: dL/dtau_i = g_i T_{i+1} - sum_{j > i} g_j w_j - T_end dL/dT_end.
KERNEL weigh_backward(PARAMETER Work work) {
    const long long ray = thread_x();
    if (ray >= work.n_rays) return;
    const long long first = work.offsets[ray], end = work.offsets[ray + 1];
    if (end == first) return;
    float behind = work.grad_transmittance[ray] * work.after[end - 1];
    for (long long i = end - 1; i >= first; --i) {
        const float g = work.slope[i];
        work.grad_density[i] = (g * work.after[i] - behind) * work.lengths[i];
        behind += g * work.weights[i];
    }
}
