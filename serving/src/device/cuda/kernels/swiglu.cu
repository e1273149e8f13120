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

// silu(gate) * up of a pack whose gate begins at `from`.
template <int P>
__device__ __forceinline__ void activate(const act* from, int inner, float (&out)[P]) {
    float gate[P];
    load<P>(from, gate);
    load<P>(from + inner, out);
#pragma unroll
    for (int i = 0; i < P; i++) {
        out[i] = silu(gate[i]) * out[i];
    }
}

template <int P>
__device__ __forceinline__ void combine(const act* gate_up, act* out, long long total, int inner) {
    unsigned width = inner / P, stride = gridDim.x * SWIGLU_THREADS, first = blockIdx.x * SWIGLU_THREADS + threadIdx.x;
    // The place of a pack is kept as row and column, so that only its first costs a division.
    unsigned row = first / width, rows_on = stride / width;
    unsigned column = first % width, columns_on = stride % width;
    for (long long at = first, packs = total / P; at < packs; at += stride) {
        float values[P];
        activate<P>(gate_up + (2ll * row * width + column) * P, inner, values);
        store<P>(out + at * P, values);
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

constexpr int SWIGLU_ROW_THREADS = 512;

// The same for an input of a product in FP8: out[t, c] * scales[t] is silu(gate[t, c]) * up[t, c], and the largest |out| of a row
// is E4M3_MAX.
//
// out [n, inner] in e4m3, scales [n]; inner is a multiple of 16. Launch: a block of SWIGLU_ROW_THREADS for each row, which is read
// and computed twice: first for its largest magnitude, then, from a cache, to be rounded.
// Reference: device/cpu, swiglu. Bound: memory, n * inner * (2 * sizeof(act) + 1) bytes.
extern "C" __global__ void __launch_bounds__(SWIGLU_ROW_THREADS) swiglu_e4m3(
    const act* __restrict__ gate_up, e4m3* __restrict__ out, float* __restrict__ scales, int inner) {
    gate_up += (long long)blockIdx.x * 2 * inner;
    out += (long long)blockIdx.x * inner;
    float largest = 0;
#pragma unroll 2
    for (int c = threadIdx.x * PACK; c < inner; c += SWIGLU_ROW_THREADS * PACK) {
        float values[PACK];
        activate<PACK>(gate_up + c, inner, values);
#pragma unroll
        for (int i = 0; i < PACK; i++) {
            largest = fmaxf(largest, fabsf(values[i]));
        }
    }
    largest = largest_of_block<SWIGLU_ROW_THREADS / WARP>(largest);
    if (threadIdx.x == 0) {
        scales[blockIdx.x] = largest / E4M3_MAX;
    }
    float up = E4M3_MAX / largest;
#pragma unroll 2
    for (int c = threadIdx.x * PACK; c < inner; c += SWIGLU_ROW_THREADS * PACK) {
        float values[PACK];
        activate<PACK>(gate_up + c, inner, values);
#pragma unroll
        for (int i = 0; i < PACK; i++) {
            values[i] *= up;
        }
        store_e4m3(out + c, values);
    }
}
