// Adds a bias to each row: x[t, c] += bias[c].
//
// x [n, width], bias [width], total = n * width. Launch: any grid of blocks of BIAS_THREADS, each thread taking every grid's
// width-th pack. Reference: device/cpu, forward. Bound: memory, 2 * total * sizeof(act) bytes.

constexpr int BIAS_THREADS = 256;

template <int P>
__device__ __forceinline__ void add_rows(act* x, const float* bias, long long total, int width) {
    unsigned stride = gridDim.x * BIAS_THREADS * P, first = (blockIdx.x * BIAS_THREADS + threadIdx.x) * P;
    // The column is kept, so that only the first costs a division.
    unsigned column = first % width, columns_on = stride % width;
    for (long long at = first; at < total; at += stride) {
        float values[P], biases[P];
        load<P>(x + at, values);
        load_floats<P>(bias + column, biases);
#pragma unroll
        for (int i = 0; i < P; i++) {
            values[i] += biases[i];
        }
        store<P>(x + at, values);
        column += columns_on;
        if (column >= width) {
            column -= width;
        }
    }
}

extern "C" __global__ void __launch_bounds__(BIAS_THREADS) add_bias(
    act* __restrict__ x, const float* __restrict__ bias, long long total, int width) {
    if (width % PACK == 0) {
        add_rows<PACK>(x, bias, total, width);
    } else {
        add_rows<1>(x, bias, total, width);
    }
}
