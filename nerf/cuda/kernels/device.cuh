// What the kernels need of a GPU, and no more: thread indices, exact rounding, half precision and
// additions that many threads make at once. The kernels themselves are plain C++, so that the
// tests build the same files for the host, with their own version of this one.
//
// No header of CUDA's is included: NVRTC's wheel brings none.
#pragma once

#define KERNEL extern "C" __global__ void __launch_bounds__(BLOCK_SIZE)
#define DEVICE static __device__ __forceinline__
// Read where it lies, in the constant bank: without it an index that varies makes a local copy.
#define PARAMETER const __grid_constant__

DEVICE long long thread_x() { return (long long)blockIdx.x * blockDim.x + threadIdx.x; }
DEVICE int block_y() { return blockIdx.y; }
DEVICE float infinity() { return __int_as_float(0x7f800000); }

// Products and sums that are not contracted into one: a point on a cell's face must fall on the
// same side as in the reference.
DEVICE float mul_rn(float a, float b) { return __fmul_rn(a, b); }
DEVICE float add_rn(float a, float b) { return __fadd_rn(a, b); }
DEVICE double mul_rn(double a, double b) { return __dmul_rn(a, b); }
DEVICE double add_rn(double a, double b) { return __dadd_rn(a, b); }

struct Half {
    unsigned short bits;
};

DEVICE float widen(float value) { return value; }
DEVICE double widen(double value) { return value; }
DEVICE float widen(Half value) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
    return wide;
}

DEVICE void narrow(float value, float& out) { out = value; }
DEVICE void narrow(double value, double& out) { out = value; }
DEVICE void narrow(float value, Half& out) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(value));
}

DEVICE unsigned pack_halves(float low, float high) {
    Half a, b;
    narrow(low, a);
    narrow(high, b);
    return (unsigned)a.bits | (unsigned)b.bits << 16;
}

// Add F values to F neighbours in memory, each addition indivisible; `to` is aligned to all F of
// them, or to 16 bytes. One instruction for as many values as the architecture takes.
template <int F>
DEVICE void add_at(double* to, const double (&values)[F]) {
#pragma unroll
    for (int f = 0; f < F; ++f) atomicAdd(to + f, values[f]);
}

template <int F>
DEVICE void add_at(float* to, const float (&values)[F]) {
#if __CUDA_ARCH__ >= 900
    if constexpr (F % 4 == 0) {
#pragma unroll
        for (int f = 0; f < F; f += 4)
            asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to + f),
                         "f"(values[f]), "f"(values[f + 1]), "f"(values[f + 2]), "f"(values[f + 3])
                         : "memory");
    } else if constexpr (F == 2) {
        asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(to), "f"(values[0]),
                     "f"(values[1])
                     : "memory");
    } else
#endif
    {
#pragma unroll
        for (int f = 0; f < F; ++f) atomicAdd(to + f, values[f]);
    }
}

template <int F>
DEVICE void add_at(Half* to, const float (&values)[F]) {
    if constexpr (F == 1) {
        Half narrowed;
        narrow(values[0], narrowed);
        asm volatile("red.global.add.noftz.f16 [%0], %1;" ::"l"(to), "h"(narrowed.bits)
                     : "memory");
    } else {
        unsigned pairs[F / 2];
#pragma unroll
        for (int f = 0; f < F; f += 2) pairs[f / 2] = pack_halves(values[f], values[f + 1]);
#if __CUDA_ARCH__ >= 900
        if constexpr (F == 8) {
            asm volatile("red.global.add.noftz.v4.f16x2 [%0], {%1, %2, %3, %4};" ::"l"(to),
                         "r"(pairs[0]), "r"(pairs[1]), "r"(pairs[2]), "r"(pairs[3])
                         : "memory");
            return;
        }
        if constexpr (F == 4) {
            asm volatile("red.global.add.noftz.v2.f16x2 [%0], {%1, %2};" ::"l"(to), "r"(pairs[0]),
                         "r"(pairs[1])
                         : "memory");
            return;
        }
#endif
#pragma unroll
        for (int f = 0; f < F; f += 2)
            asm volatile("red.global.add.noftz.f16x2 [%0], %1;" ::"l"(to + f), "r"(pairs[f / 2])
                         : "memory");
    }
}

// The larger of what is there and `value`, for numbers that are not negative: their bits have
// their order.
DEVICE void max_at(float* to, float value) {
    atomicMax(reinterpret_cast<int*>(to), __float_as_int(value));
}
