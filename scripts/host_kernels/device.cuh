// What nerf/cuda/kernels/device.cuh gives to the kernels, for a build of the same kernels on the
// host. Threads run one after the other, so that a plain addition is indivisible.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define KERNEL extern "C" void
#define DEVICE static inline
#define PARAMETER const

using std::floor;

static long long current_x;
static int current_y;

DEVICE long long thread_x() { return current_x; }
DEVICE int block_y() { return current_y; }
DEVICE float infinity() { return INFINITY; }

// Built with -ffp-contract=off.
DEVICE float mul_rn(float a, float b) { return a * b; }
DEVICE float add_rn(float a, float b) { return a + b; }
DEVICE double mul_rn(double a, double b) { return a * b; }
DEVICE double add_rn(double a, double b) { return a + b; }

struct Half {
    unsigned short bits;
};

DEVICE float widen(float value) { return value; }
DEVICE double widen(double value) { return value; }
DEVICE float widen(Half value) {
    _Float16 half;
    std::memcpy(&half, &value, sizeof half);
    return half;
}

DEVICE void narrow(float value, float& out) { out = value; }
DEVICE void narrow(double value, double& out) { out = value; }
DEVICE void narrow(float value, Half& out) {
    const _Float16 half = value;
    std::memcpy(&out, &half, sizeof half);
}

template <int F, typename T, typename V>
DEVICE void add_at(T* to, const V (&values)[F]) {
    // What the instruction for so many values demands.
    constexpr unsigned piece = sizeof(T) * F < 16 ? sizeof(T) * F : 16;
    if (reinterpret_cast<std::uintptr_t>(to) % piece != 0) __builtin_trap();
    for (int f = 0; f < F; ++f) {
        V addend;
        T rounded;
        narrow(values[f], rounded);
        addend = widen(rounded);
        narrow(widen(to[f]) + addend, to[f]);
    }
}

DEVICE void max_at(float* to, float value) { *to = fmax(*to, value); }
