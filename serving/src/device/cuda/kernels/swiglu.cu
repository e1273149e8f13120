// SwiGLU's elementwise part: out[t, c] = silu(gate[t, c]) * up[t, c], silu(x) = x / (1 + exp(-x)) (Shazeer 2020).
//
// gate_up [n, 2 * inner], the gate first; out [n, inner]; total = n * inner.
// Launch: any grid of blocks of SWIGLU_THREADS, each thread taking every grid's width-th pack.
// Reference: device/cpu, swiglu. Bound: memory, 3 * total * sizeof(act) bytes.

constexpr int SWIGLU_THREADS = 256;

__device__ __forceinline__ float silu(float x) {
#ifdef ACT_F32
    return x / (1 + exponential(-x));
#else
    return __fdividef(x, 1 + exponential(-x));
#endif
}

template <int P>
__device__ __forceinline__ void combine(const act* gate_up, act* out, long long total, int inner) {
    unsigned width = inner / P, stride = gridDim.x * SWIGLU_THREADS, first = blockIdx.x * SWIGLU_THREADS + threadIdx.x;
    // The place of a pack is kept as row and column, so that only its first costs a division.
    unsigned row = first / width, rows_on = stride / width;
    unsigned column = first % width, columns_on = stride % width;
    for (long long at = first, packs = total / P; at < packs; at += stride) {
        float gate[P], up[P];
        const act* from = gate_up + (2ll * row * width + column) * P;
        load<P>(from, gate);
        load<P>(from + inner, up);
#pragma unroll
        for (int i = 0; i < P; i++) {
            up[i] = silu(gate[i]) * up[i];
        }
        store<P>(out + at * P, up);
        row += rows_on;
        column += columns_on;
        if (column >= width) {
            column -= width;
            row++;
        }
    }
}

extern "C" __global__ void __launch_bounds__(SWIGLU_THREADS) swiglu(
    const act* __restrict__ gate_up, act* __restrict__ out, long long total, int inner) {
    if (inner % PACK == 0) {
        combine<PACK>(gate_up, out, total, inner);
    } else {
        combine<1>(gate_up, out, total, inner);
    }
}
